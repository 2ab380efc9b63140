"""``nlbfarm-node demo``: a farm on this machine, live in the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nlbfarm.errors import HostError, UsageError
from nlbfarm.lab import LabError
from nlbfarm.lab.story import Results, Story, lab_for

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.table import Table

__all__ = ["run_demo"]

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")
_ROW = 64  # buckets a line
_INTERRUPTED = 130  # 128 + SIGINT, as a shell says it


def run_demo(scenario: str, nodes: int, server: str, backend: str, json_file: Path | None, keep: bool) -> int:
    """Run the demo and print what was measured.

    Args:
        scenario: Name of the story, of ``nlbfarm.lab.story.SCENARIOS``.
        nodes: How many nodes, 2 or more.
        server: ``"auto"``, ``"apache"``, ``"nginx"`` or ``"builtin"``.
        backend: Filter backend, ``"auto"`` or a name.
        json_file: Where to write the results as JSON; ``-`` is standard output, and the story then goes to
            standard error.
        keep: Leave the farm running afterwards, until Ctrl-C or SIGTERM.

    Returns:
        0 if every goal was reached, 1 if not, 130 if interrupted.

    Raises:
        HostError: This host cannot make namespaces, or lacks something the demo needs; or ``json_file``
            cannot be written, found out before anything starts.
        UsageError: No demo can be told with so few nodes, or there is no such story.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise HostError(
            "the demo needs the package rich; install nlbfarm with the extra lab: nlbfarm[lab]"
        ) from None
    if nodes < 2:
        raise UsageError(
            f"the demo takes one node away and needs another one: --nodes 2 or more, not {nodes}"
        )
    if json_file is not None:
        _check_writable(json_file)
    to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=to_stdout, highlight=False)
    try:
        with _sigterm_interrupts():
            results = _tell(console, scenario, nodes, server, backend, keep)
    except KeyboardInterrupt:
        console.print("\nInterrupted. Nothing is left of the lab.")
        return _INTERRUPTED
    except LabError as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    text = json.dumps(results.as_json(), indent=2)
    if to_stdout:
        print(text)  # noqa: T201
    elif json_file is not None:
        try:
            json_file.write_text(text + "\n")
        except OSError as error:
            raise _unwritable(json_file, error) from error
        console.print(f"Results: {json_file}")
    failures = results.failures()
    for failure in failures:
        console.print(f"Goal missed: {failure}", style="red", markup=False)
    if failures:
        for node, log in results.logs.items():
            console.print(f"The log of {node}:\n{log.strip()}", markup=False, soft_wrap=True)
    else:
        console.print("Every goal was reached.", style="green")
    return 1 if failures else 0


def _check_writable(file: Path) -> None:
    """Find out whether a file can be written; nothing of it is left if it is not there yet."""
    if str(file) == "-" or (file.exists() and not file.is_file()):
        return  # a pipe or a device: opening it might wait, or do something
    new = not file.exists()
    try:
        os.close(os.open(file, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if new else 0), 0o666))
        if new:
            file.unlink()
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> HostError:
    return HostError(f"the results cannot be written to {file}: {error.strerror}")


def _tell(console: Console, scenario: str, nodes: int, server: str, backend: str, keep: bool) -> Results:
    from rich.markup import escape

    began = time.monotonic()

    def tell(sentence: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/dim]  {escape(sentence)}", soft_wrap=True)

    with lab_for(scenario, nodes, server, backend) as lab:
        tell(f"{nodes} machines, a client and a switch, each in a namespace; server: {lab.server.detail}")
        story = Story(lab, tell, scenario)
        with _live(console, story):
            story.run()
        if keep:
            console.print(_table(story.results, running=True))
            _keep(console, story)
        story.finish()
    console.print(_table(story.results))
    return story.results


@contextlib.contextmanager
def _live(console: Console, story: Story) -> Iterator[None]:
    """Draw the buckets below the story while it is told; only on a terminal."""
    if not console.is_terminal:
        yield
        return
    from rich.live import Live

    with Live(_Picture(story), console=console, refresh_per_second=8, transient=True):
        yield


class _Picture:
    """The 256 buckets, each in the colour of the node that answered it last; what fails is red."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._before: tuple[float, Counter[str]] = (0.0, Counter())
        self._rates: Counter[str] = Counter()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw()

    def _draw(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        names = self._story.lab.names
        colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
        latest, totals, seen = self._story.latest()
        if seen - self._before[0] >= 1:
            self._rates = Counter(
                {
                    name: int((totals[name] - self._before[1][name]) / (seen - self._before[0]))
                    for name in names
                }
            )
            self._before = (seen, totals)
        if not seen:
            return Group()  # the client has not started
        lines = []
        for first in range(0, len(latest), _ROW):
            line = Text("  ")
            for node in latest[first : first + _ROW]:
                line.append("■" if node else "·", style=colours.get(node or "", "red"))
            lines.append(line)
        owned = Counter(latest)
        legend = Text("  ")
        for name in names:
            legend.append("■ ", style=colours[name])
            legend.append(f"{name} {owned[name]} buckets, {self._rates[name]} requests/s   ")
        if owned[None]:
            legend.append(f"· unanswered {owned[None]}", style="red")
        return Group(Text(""), *lines, legend)


def _table(results: Results, *, running: bool = False) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="What was measured", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("scenario", results.scenario)
    table.add_row("nodes, server", f"{results.nodes}, {results.server}")
    table.add_row("filter, delivery", f"{results.backend}, {results.delivery}")
    for measurement in results.measurements:
        for what, how_much in measurement.rows():
            table.add_row(what, escape(how_much))
    if not running:
        left = f"{len(results.leftovers)} things" if results.leftovers else "nothing"
        table.add_row("left behind on this host", left)
    return table


def _keep(console: Console, story: Story) -> None:
    console.print("\nThe farm keeps running. To look around, from another terminal:\n")
    for line in story.look_around():
        console.print(f"  {line}", soft_wrap=True, markup=False)
    console.print("\nCtrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that it also says so; a lab needs neither to vanish."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
