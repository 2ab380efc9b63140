"""The command, schedules as data, shrinking, and the rules that can be disabled: each is missed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nlbfarm.testing.actions import ACTIONS, Action
from nlbfarm.testing.breaks import BREAKS, broken
from nlbfarm.testing.chance import FAMILIES, random_schedule
from nlbfarm.testing.schedules import Schedule, play
from nlbfarm.testing.shrink import shrink
from nlbfarm.testing.simulate import main

ENOUGH = 250
"""Within so many schedules of the kind that it matters in, a disabled rule has to be missed."""

KINDS = {
    "acquire-without-waiting": ("faults", 4),
    "no-epoch-acknowledgement": ("planned", 5),
    "no-fencing": ("cuts", 3),
    "lease-kept-after-lapse": ("faults", 3),
    "late-turn-not-judged": ("faults", 2),
    "views-not-compared": ("cuts", 3),
    "no-wait-after-joining": ("cuts", 2),
    "no-incarnation-echo": ("faults", 3),
    "old-words-accepted": ("faults", 3),
    "announce-after-accepting": ("planned", 4),
    "drop-before-drain": ("planned", 3),
    "own-instead-of-adopt": ("planned", 3),
    "drain-without-asking": ("planned", 3),
    "earlier-flows-forgotten": ("planned", 3),
    "no-restart-grace": ("planned", 3),
    "restarts-not-counted": ("applications", 4),
    "restarts-of-one-life": ("applications", 4),
    "up-before-it-answers": ("applications", 4),
    "given-up-comes-back": ("applications", 4),
    "order-ignored": ("applications", 4),
    "maintenance-ignored": ("applications", 5),
    "leave-without-heirs": ("applications", 3),
    "last-node-leaves": ("applications", 3),
    "hold-never-ends": ("applications", 4),
    "cause-forgotten": ("applications", 4),
}
"""In which schedules, of how many nodes at most, a rule matters; the others matter in most."""


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_each_disabled_rule_is_missed(name: str) -> None:
    family, most = KINDS.get(name, (None, 5))
    with broken(name):
        schedules = (random_schedule(seed, (2, most), family) for seed in range(1, ENOUGH))
        assert any(play(schedule).violation for schedule in schedules)


def test_a_rule_is_whole_again_after_the_block() -> None:
    before = [getattr(entry.owner, entry.attribute) for entries in BREAKS.values() for entry in entries]
    for name in BREAKS:
        with broken(name):
            pass
    after = [getattr(entry.owner, entry.attribute) for entries in BREAKS.values() for entry in entries]
    assert before == after


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_schedules_are_data(family: str) -> None:
    """Written down and read back, a schedule is the same, and its run is."""
    schedule = random_schedule(7, (2, 6), family)
    again = Schedule.from_json(schedule.to_json())
    assert again == schedule == random_schedule(7, (2, 6), family)
    assert {action.kind for action in schedule.actions} <= set(ACTIONS)
    one, two = play(schedule), play(again)
    assert (one.simulated_s, one.datagrams, one.opened) == (two.simulated_s, two.datagrams, two.opened)


def test_a_failing_schedule_is_shrunk_to_what_makes_it_fail() -> None:
    with broken("drop-before-drain"):
        schedule = next(
            schedule
            for schedule in (random_schedule(seed, (4, 6), "planned") for seed in range(1, 50))
            if play(schedule).violation and len(schedule.actions) > 5
        )
        violation = play(schedule).violation
        assert violation is not None
        small = shrink(schedule, violation.rule, budget_s=20)
        again = play(small).violation
    assert again is not None
    assert again.rule == violation.rule == "I3"
    assert len(small.actions) <= 3
    assert small.nodes <= schedule.nodes


def test_an_error_of_the_core_is_a_finding_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("not like this")

    monkeypatch.setattr("nlbfarm.core.membership.Membership.step", fail)
    violation = play(Schedule(seed=5, nodes=2, actions=(Action(0.0, "start", (1,)),))).violation
    assert violation is not None
    assert violation.rule == "ERROR"
    assert str(violation).startswith("seed 5, ")
    assert "not like this" in str(violation)


def test_the_command_writes_json_and_says_in_one_line_how_it_went(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ["--schedules", "30", "--nodes", "2-4", "--seed", "3", "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "nlbfarm.testing.simulate", *options, "--json", str(result)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("30 schedules, 0 violations, ")
    written = json.loads(result.read_text())
    assert (written["schedules"], written["violations"], written["failures"]) == (30, 0, [])
    assert written["simulated_hours"] > 0


def test_the_command_fails_with_a_seed_and_a_schedule_to_replay(tmp_path: Path) -> None:
    options = ["--break", "drop-before-drain", "--family", "planned", "--nodes", "2-3"]
    failed = CliRunner().invoke(main, [*options, "--schedules", "3", "--seed", "1"])
    assert failed.exit_code == 1
    assert "shrunk schedule: seed=" in failed.stderr
    assert "I3: " in failed.stderr
    replay = next(line for line in failed.stderr.splitlines() if line.startswith("replay with"))
    file = tmp_path / "schedule.json"
    file.write_text(replay.partition(": ")[2])
    again = CliRunner().invoke(main, ["--break", "drop-before-drain", "--replay", str(file)])
    assert again.exit_code == 1
    assert "I3: " in again.stdout.splitlines()[-1]
    whole = CliRunner().invoke(main, ["--replay", str(file)])
    assert whole.exit_code == 0
    assert "every invariant held" in whole.stdout


def test_the_command_tells_one_run() -> None:
    told = CliRunner().invoke(main, ["--trace", "4", "--nodes", "3"])
    assert told.exit_code == 0
    assert "view.entered" in told.stdout


@pytest.mark.parametrize("nodes", ["1", "3-2", "40", "many"])
def test_a_wrong_number_of_nodes_is_refused(nodes: str) -> None:
    refused = CliRunner().invoke(main, ["--nodes", nodes])
    assert refused.exit_code == 2
    assert "is not a number of nodes" in refused.stderr


def test_the_page_names_every_rule_and_its_commands_are_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    for name, entries in BREAKS.items():
        assert f"| `{name}` | {' '.join(entry.rule for entry in entries)} |" in page
    assert all(f"| `{family}` |" in page for family in FAMILIES)
    lines = [line for line in page.splitlines() if line.startswith("$ python -m nlbfarm.testing.simulate")]
    assert len(lines) >= 3
    for line in lines:
        main.make_context("simulate", shlex.split(line)[4:])
