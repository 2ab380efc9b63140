"""docs/protocol.md says what the code does: its generated parts are fresh, the names in it exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.protocol_doc import PAGE, Part, layouts, main, resolve, rewrite
from tests.core.words import plan, word

from nlbfarm.core.wire import Codec, Keyring, Order, OrderAnswer, OrderState, PlanChunk, PlanRequest

CODEC = Codec("shop", Keyring({1: bytes(32)}, active=1))
ENVELOPE = 16 + 16  # header and tag


def test_the_page_is_up_to_date() -> None:
    assert main(["--check"]) == 0, "run python scripts/protocol_doc.py"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "protocol.md"
    good = PAGE.read_text(encoding="utf-8")
    page.write_text(good.replace("500 ms", "400 ms"), encoding="utf-8")
    assert main(["--check", "--page", str(page)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main(["--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == good


def test_a_page_without_a_generated_part_is_refused() -> None:
    with pytest.raises(ValueError, match="generated parts"):
        rewrite(PAGE.read_text(encoding="utf-8").replace("generated: timing", "generated: time"))


def test_names_in_the_text_exist() -> None:
    modules = {path.stem for path in (PAGE.parent.parent / "src" / "nlbfarm" / "core").glob("*.py")}
    named = re.findall(r"`((\w+)\.\w+(?:\.\w+)?)`", PAGE.read_text(encoding="utf-8"))
    places = [place for place, module in named if module in modules]
    assert places
    for place in places:
        resolve(place)


def size(parts: list[Part], counts: dict[str, int]) -> int:
    return sum(part.size * (counts[part.times] if part.times else 1) for part in parts)


def test_the_layout_of_a_heartbeat_adds_up() -> None:
    beat = word(1, follows=plan(3, {1: 10, 2: 20, 3: 30}, owner=1), incarnation=10, hears={2: (20, 5)})
    _, parts = layouts()["Heartbeat"]
    counts = {
        "reason_bytes": 0,
        "(1 with a view, else 0)": 1,
        "member_count": 3,
        "echo_count": 1,
        "group_count": 1,
        "(1 inside, else 0)": 1,
        "(group_count x bits of member_count, with flag PLAN)": 2,
    }
    assert len(CODEC.encode(beat)) == ENVELOPE + size(parts, counts)


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        (PlanRequest(1, 2, bytes(16), 0), {}),
        (PlanChunk(1, 2, bytes(16), 0, 1, b"abc"), {"(the rest)": 3}),
        (Order(1, 2, 3, 4, 5, 6, "stop", "now"), {"verb_bytes": 4, "(the rest)": 3}),
        (OrderAnswer(1, 2, 3, 4, 5, OrderState.DONE, "well"), {"(the rest)": 4}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layout_of_other_messages_adds_up(
    message: PlanRequest | PlanChunk | Order | OrderAnswer, counts: dict[str, int]
) -> None:
    kind, parts = layouts()[type(message).__name__]
    data = CODEC.encode(message)
    assert data[5] == kind
    assert len(data) == ENVELOPE + size(parts, counts)
