"""docs/health.md says what the code does: its generated parts are fresh, its diagrams complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.health_doc import BLOCKS, PAGE, described, main
from scripts.protocol_doc import rewrite

from nlbfarm.core.supervision import Action, Phase
from nlbfarm.core.supervision.table import TRANSITIONS

EDGE = re.compile(r"^    (?P<one>\w+) --> (?P<other>\w+): (?P<texts>.*)$", re.MULTILINE)


def test_the_page_is_up_to_date() -> None:
    assert main(["--check"]) == 0, "run python -m scripts.health_doc"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "health.md"
    good = PAGE.read_text(encoding="utf-8")
    page.write_text(good.replace("count a restart", "count nothing"), encoding="utf-8")
    assert main(["--check", "--page", str(page)]) == 1
    assert "out of date; run python -m scripts.health_doc" in capsys.readouterr().err
    assert main(["--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == good


def test_a_page_without_a_generated_part_is_refused() -> None:
    with pytest.raises(ValueError, match="generated parts"):
        rewrite(PAGE.read_text(encoding="utf-8").replace("generated: pauses", "generated: waits"), BLOCKS)


def test_the_diagrams_have_every_transition_once() -> None:
    drawn = [
        (edge["one"], edge["other"], text)
        for name in ("life", "orders")
        for edge in EDGE.finditer(BLOCKS[name]())
        for text in edge["texts"].split(" / ")
    ]
    told = [(one.name.lower(), to.to.name.lower(), what.value) for (one, what), to in TRANSITIONS.items()]
    assert sorted(drawn) == sorted(told)


@pytest.mark.parametrize("kind", [Action, Phase])
def test_every_word_is_explained(kind: type[Action] | type[Phase]) -> None:
    assert all(described(kind).values())
