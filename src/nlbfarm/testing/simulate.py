"""``python -m nlbfarm.testing.simulate``: runs random schedules and says whether an invariant broke.

Exit codes: 0 no violation; 1 a violation; 2 wrong use.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from nlbfarm.testing.batch import Failure, Summary, run_all
from nlbfarm.testing.breaks import BREAKS, broken
from nlbfarm.testing.chance import FAMILIES, random_schedule
from nlbfarm.testing.schedules import Schedule, build, play
from nlbfarm.testing.shrink import shrink

__all__ = ["main"]

SHRUNK = 3
"""How many failing runs are shrunk and printed at length."""


class _NodeRange(click.ParamType[tuple[int, int]]):
    """``M`` or ``M-K``: how many nodes a farm has."""

    name = "M[-K]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        fewest, _, most = str(value).partition("-")
        if fewest.isdigit() and (most or fewest).isdigit() and 2 <= int(fewest) <= int(most or fewest) <= 32:
            return int(fewest), int(most or fewest)
        return self.fail(
            f"{value!r} is not a number of nodes from 2 to 32, or two of them: 3, 2-6", param, ctx
        )


@click.command(help="Run simulated farms through random schedules of faults, and check the invariants.")
@click.option("--schedules", default=1000, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--nodes", default="2-32", show_default=True, type=_NodeRange(), help="Nodes of a farm.")
@click.option(
    "--seed", default=1, show_default=True, help="Of the first schedule; the next has the next seed."
)
@click.option("--family", type=click.Choice(sorted(FAMILIES)), help="Only schedules of this kind.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes side by side.")
@click.option(
    "--break", "breaking", type=click.Choice(sorted(BREAKS)), help="Disable a rule of the protocol."
)
@click.option("--trace", type=int, metavar="SEED", help="Run this one schedule and print all that happens.")
@click.option("--replay", type=click.Path(allow_dash=True), help="Run the schedule in this file of JSON.")
@click.option(
    "--json", "json_to", type=click.Path(allow_dash=True), help="Write the result as JSON; - is stdout."
)
@click.option("--shrink/--no-shrink", "shrinking", default=True, help="Make failing schedules small.")
def main(
    schedules: int,
    nodes: tuple[int, int],
    seed: int,
    family: str | None,
    jobs: int,
    breaking: str | None,
    trace: int | None,
    replay: str | None,
    json_to: str | None,
    shrinking: bool,
) -> None:
    """Run the command."""
    if trace is not None or replay is not None:
        if replay is not None:
            schedule = Schedule.from_json(sys.stdin.read() if replay == "-" else Path(replay).read_text())
        else:
            schedule = random_schedule(trace or 0, nodes, family)
        with broken(breaking):
            sys.exit(_tell_one(schedule))
    seeds = range(seed, seed + schedules)
    begun = time.monotonic()
    with _progress(schedules) as advance:
        summary = run_all(seeds, nodes, family, breaking, jobs, advance)
    summary.seconds = time.monotonic() - begun
    with broken(breaking):
        for failure in summary.failures[:SHRUNK] if shrinking else []:
            _tell_failure(failure, nodes, family, breaking)
    if json_to is not None:
        text = json.dumps({"break": breaking, **asdict(summary)}, indent=2)
        if json_to == "-":
            click.echo(text)
        else:
            Path(json_to).write_text(text + "\n")
    if json_to != "-":
        click.echo(_line(summary, breaking))
    sys.exit(1 if summary.violations else 0)


def _line(summary: Summary, breaking: str | None) -> str:
    told = f"{summary.schedules} schedules"
    if breaking:
        told += f" with --break {breaking}"
    told += f", {summary.violations} violations, {summary.seconds:.0f} s"
    told += f" ({1e3 * summary.cpu_seconds / summary.schedules:.0f} ms of CPU each)"
    told += f", {summary.simulated_hours:.2f} simulated hours"
    if summary.violations:
        told += ", failing seeds: " + " ".join(str(failure.seed) for failure in summary.failures[:20])
    return told


def _tell_one(schedule: Schedule) -> int:
    """Run one schedule and print its actions and its whole trace; return the exit code."""
    farm = build(schedule)
    outcome = play(schedule, farm)
    click.echo(_describe(schedule))
    click.echo("\ntrace:\n" + farm.story(len(farm.trace)))
    if outcome.violation is None:
        click.echo(f"\nevery invariant held; whole {outcome.settled_s:.1f} s after the last action")
        return 0
    click.echo("\n" + str(outcome.violation).partition("\n")[0])
    return 1


def _describe(schedule: Schedule) -> str:
    plain = Schedule(seed=0, nodes=0)
    told = [
        f"{name}={value}"
        for name, value in asdict(schedule).items()
        if name not in ("actions", "applications") and value != getattr(plain, name)
    ]
    supervised = schedule.applications.told() if schedule.applications is not None else ()
    return "\n".join(["schedule: " + " ".join(told), *supervised, *map(str, schedule.actions)])


def _tell_failure(failure: Failure, nodes: tuple[int, int], family: str | None, breaking: str | None) -> None:
    """Shrink a failing schedule and print what is left of it, its trace and how to run it again."""
    small = shrink(random_schedule(failure.seed, nodes, family), failure.rule)
    violation = play(small).violation
    options = f" --family {family}" if family else ""
    options += f" --break {breaking}" if breaking else ""
    again = f"--nodes {nodes[0]}-{nodes[1]}{options} --trace {failure.seed}"
    click.echo(f"\nseed {failure.seed} again: python -m nlbfarm.testing.simulate {again}", err=True)
    click.echo("shrunk " + _describe(small), err=True)
    click.echo(f"fails: {violation}", err=True)
    click.echo(f"replay with --replay -{options}: {small.to_json()}", err=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Summary], None]]:
    """Yield a function that is told what came out of some more schedules; it names those that fail."""
    if not sys.stderr.isatty():
        yield _tell_failures
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield _plain_progress(total)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("schedules", total=total)
        violations = 0

        def advance(part: Summary) -> None:
            nonlocal violations
            violations += part.violations
            for failure in part.failures:
                bar.console.print(_failure_line(failure), highlight=False, markup=False)
            bar.update(task, advance=part.schedules, description=f"schedules ({violations} violations)")

        yield advance


def _plain_progress(total: int) -> Callable[[Summary], None]:
    said, count, violations = time.monotonic(), 0, 0

    def advance(part: Summary) -> None:
        nonlocal said, count, violations
        _tell_failures(part)
        count += part.schedules
        violations += part.violations
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            click.echo(f"{count} of {total} schedules, {violations} violations", err=True)

    return advance


def _tell_failures(part: Summary) -> None:
    for failure in part.failures:
        click.echo(_failure_line(failure), err=True)


def _failure_line(failure: Failure) -> str:
    return f"seed {failure.seed} fails: {failure.message}"


if __name__ == "__main__":
    main()
