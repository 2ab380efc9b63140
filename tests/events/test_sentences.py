"""Sentences: every event of the source has one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.events.examples import EXAMPLES

import nlbfarm
from nlbfarm.events.model import Severity
from nlbfarm.events.sentences import EVENTS, LONGEST, sentence, severity

SOURCE = Path(nlbfarm.__file__).parent

NAME = re.compile(r"[a-z]+\.[a-z_]+")
LOGS = frozenset(
    {"debug", "info", "warning", "error", "exception", "log", "Report", "Tell", "_peer", "_tell"}
)
"""Calls whose first argument that looks like a name is the name of an event."""

PLACES = ("core", "runtime", "events", "notify")
"""Where a constant that begins like an event is one; elsewhere it may be a path in the configuration."""


def logged() -> Iterator[tuple[str, str]]:
    """Yield every name of an event in the source, and where it stands."""
    families = {name.partition(".")[0] for name in EVENTS}
    for path in sorted(SOURCE.rglob("*.py")):
        where = str(path.relative_to(SOURCE))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node.func) in LOGS:
                found = [
                    name for argument in node.args[:2] for part in ast.walk(argument) for name in _names(part)
                ]
            elif where.partition("/")[0] in PLACES:
                found = [name for name in _names(node) if name.partition(".")[0] in families]
            else:
                continue
            yield from ((name, where) for name in found)


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _names(node: ast.AST) -> list[str]:
    """Return the constant that ``node`` is, if it can be a name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
        return [node.value]
    return []


def test_every_event_of_the_source_has_a_sentence() -> None:
    found = dict(logged())
    assert len(found) > 50, "the search finds nothing any more"
    missing = {name: where for name, where in found.items() if name not in EVENTS}
    assert missing == {}, "write a sentence for each into nlbfarm/events/sentences.py"


def test_every_event_has_an_example() -> None:
    assert set(EXAMPLES) == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_a_sentence_uses_fields_that_are_there(name: str) -> None:
    text = sentence(name, EXAMPLES[name])
    assert "?" not in text
    assert not re.search(r"[{}\[\]]", text.replace("[80]", "").replace("[80, 443]", ""))
    assert not text.endswith(".")
    assert text == text.strip()
    # Without its fields it is told nevertheless, with gaps that are seen.
    assert sentence(name, {})


def test_a_part_without_a_value_is_left_out() -> None:
    assert sentence("node.state", {"state": "UP", "reason": ""}) == "This node is UP"
    assert sentence("service.restarting", {"service": "apache"}) == "Service apache is being restarted"
    assert sentence("peer.lost", {}) == "Node ? is lost: it is not heard on any network"


def test_good_and_bad() -> None:
    up = {"checker": "page", "ok": True, "detail": "HTTP 200"}
    assert sentence("checker.changed", up) == "Checker page is up: HTTP 200"
    assert severity("checker.changed", up) is Severity.INFO
    assert severity("checker.changed", up | {"ok": False}) is Severity.WARNING
    assert sentence("rule.changed", {"rule": "gw", "ok": False}) == "Failover rule gw applies"


def test_severities_that_matter() -> None:
    for name in ("service.given_up", "filter.damaged", "node.taken_out", "node.failed"):
        assert severity(name, {}) is Severity.ERROR
    assert severity("peer.lost", {}) is Severity.WARNING
    assert severity("peer.heard", {}) is Severity.INFO
    assert severity("vendor.thing", {}) is Severity.INFO


def test_a_name_that_nobody_knows() -> None:
    assert (
        sentence("vendor.thing", {"speed": 2.5, "parts": ["a", "b"]}) == "vendor.thing: speed 2.5, parts a, b"
    )
    assert sentence("vendor.thing", {}) == "vendor.thing"


def test_what_others_said_stays_one_line_of_bounded_length() -> None:
    text = sentence(
        "checker.changed", {"checker": "x", "ok": False, "detail": "a\r\nBcc: b\x1b[31m" + "c" * 9999}
    )
    assert text.startswith("Checker x is down: a Bcc: b?[31mccc")
    assert len(text) == LONGEST
