"""Runs one benchmark and prints, and with ``--json`` writes, what it measured."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import false_alarms, flows, handoff, healing, idle, leaders, outage
from benchmarks import filter as filters

Options = Mapping[str, tuple[Any, str]]
"""Names of a benchmark's arguments, each with its default and what it means."""

SECONDS: Options = {"seconds": (30.0, "how long to measure")}
SERVER: Options = {"server": ("auto", "web server of the nodes")}

BENCHMARKS: Mapping[str, tuple[Callable[..., dict[str, Any]], Options]] = {
    "idle": (idle.measure, SECONDS),
    "flows": (flows.measure, SECONDS),
    "filter": (
        filters.measure,
        {
            "repeat": (9, "repetitions, each with fresh filters"),
            "rounds": (20, "turns in which each filter is measured in a repetition"),
            "only": ("", "measure of nlbfarm's filters only those whose names begin so"),
            "plot": ("", "also draw the results into this file, .svg or .png"),
        },
    ),
    "handoff": (
        handoff.measure,
        {
            "held": (512, "connections that are held and keep talking"),
            "rate": (200.0, "new connections a second"),
            "repeat": (1, "how often each operation is done"),
            **SERVER,
        },
    ),
    "outage": (outage.measure, {"repeat": (10, "how many machines are lost"), **SERVER}),
    "leaders": (leaders.measure, {"repeat": (20, "how many leaders are killed"), **SERVER}),
    "healing": (healing.measure, {"repeat": (10, "how many partitions"), **SERVER}),
    "false_alarms": (
        false_alarms.measure,
        {
            "minutes": (10.0, "how long to watch, for each kind of loss"),
            "hogs": (os.cpu_count() or 1, "processes that use CPU"),
            **SERVER,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for name, (measure, options) in BENCHMARKS.items():
        verb = verbs.add_parser(name, help=(measure.__doc__ or "").splitlines()[0])
        for option, (default, meaning) in options.items():
            verb.add_argument(
                f"--{option}", type=type(default), default=default, help=f"{meaning} (default: {default})"
            )
        verb.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    chosen = vars(parser.parse_args())
    measure, options = BENCHMARKS[chosen["benchmark"]]
    text = json.dumps(measure(**{option: chosen[option] for option in options}), indent=2)
    print(text)
    if chosen["json"]:
        chosen["json"].write_text(text + "\n")


if __name__ == "__main__":
    main()
