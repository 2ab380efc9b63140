"""``nlbfarm-node``: the command line of a node.

- ``common``     exit codes, options that several verbs have, which farm is meant
- ``running``    ``run``: the node itself
- ``checking``   ``check``, ``keygen``, ``backends``: before a node runs; ``trying``: ``check --host``
- ``look``       ``status``, ``buckets``, ``explain``: ask a running node; ``tables``: how it is shown
- ``events``     ``events``: what happened on it, and what happens now
- ``commanding`` ``start``, ``stop``, ``drain``, ``restart``, ``pause``, ``power``, ``failback``, ``reload``;
  ``waiting``: until done
- ``leftovers``  ``cleanup``: after a node was killed
- ``demo``       the demo's story; needs the extra ``lab``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from nlbfarm.cli.checking import backends, check, keygen
from nlbfarm.cli.commanding import drain, failback, pause, power, reload, restart, start, stop
from nlbfarm.cli.common import Verbs
from nlbfarm.cli.events import events
from nlbfarm.cli.leftovers import cleanup
from nlbfarm.cli.look import buckets, explain, status
from nlbfarm.cli.running import run
from nlbfarm.config.nodes import MAX_NODES
from nlbfarm.errors import HostError

__all__ = ["cli", "main"]


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nlbfarm", prog_name="nlbfarm-node")
def cli() -> None:
    """Run and watch a node of a farm: ordinary servers that share a virtual IP address."""


class _Scenario(click.ParamType):  # type: ignore[type-arg]  # newer versions are generic
    """The name of a story of the demo. Which there are the lab knows, which only Linux has."""

    name = "scenario"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """List the names."""
        return f"[{'|'.join(self.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name of a story that there is."""
        names = self.names()
        if names and value not in names:
            self.fail(f"{value!r} is not one of {', '.join(names)}", param, ctx)
        return str(value)

    @staticmethod
    def names() -> Sequence[str]:
        """Return all names; none where there is no demo."""
        if sys.platform != "linux":
            return ()
        from nlbfarm.lab.story import SCENARIOS

        return tuple(SCENARIOS)


for _verb in (
    run,
    check,
    keygen,
    status,
    buckets,
    explain,
    events,
    start,
    stop,
    drain,
    restart,
    pause,
    power,
    failback,
    reload,
    cleanup,
    backends,
):
    cli.add_command(_verb)


@cli.command()
@click.option(
    "--scenario",
    type=_Scenario(),
    default="tour",
    show_default=True,
    help="What happens to the farm.",
)
@click.option(
    "--nodes",
    type=click.IntRange(2, MAX_NODES),
    default=3,
    show_default=True,
    help="Servers in the farm.",
)
@click.option(
    "--server",
    type=click.Choice(["auto", "apache", "nginx", "builtin"]),
    default="auto",
    show_default=True,
    help="Web server on each of them; auto is Apache, if it is installed.",
)
@click.option("--backend", default="auto", show_default=True, help="Packet filter to use.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write what was measured to FILE; - is standard output.",
)
@click.option("--keep", is_flag=True, help="Leave the farm running and say how to look around.")
def demo(scenario: str, nodes: int, server: str, backend: str, json_file: Path | None, keep: bool) -> int:
    """Show a whole farm on this machine: it serves, loses a server, takes it back, and more."""
    if sys.platform != "linux":
        raise HostError("the demo needs Linux: its servers are network namespaces of one machine")
    try:
        from nlbfarm.cli.demo import run_demo
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("nlbfarm"):
            raise
        raise HostError(
            f"the demo needs the package {error.name}; install the extra: pip install 'nlbfarm[lab]'"
        ) from None
    code: int = run_demo(scenario, nodes, server, backend, json_file, keep)
    return code


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with an exit code of ``nlbfarm.cli.common.Exit``."""
    cli.main(args=list(args) if args is not None else None, prog_name="nlbfarm-node")
    raise AssertionError("click ends the process")
