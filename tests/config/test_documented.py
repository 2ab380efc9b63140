"""docs/configuration.md names every key, and its defaults are the real ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.config_support import SHOP, write

from nlbfarm.config.checkers import PluginChecker
from nlbfarm.config.draft import LISTS, SINGLE, field_reader
from nlbfarm.config.loading import examine
from nlbfarm.config.services import Scripts
from nlbfarm.config.types import Section

PAGE = (Path(__file__).parent.parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
MODELS: list[tuple[str, type[Section]]] = [
    *SINGLE.items(),
    *((key, model) for key, model in LISTS.items() if model is not None),
    ("checkers", PluginChecker),  # the keys of each type: test_checkers_config.py
]


def rows(table: str) -> dict[str, str]:
    """Return the keys of a table of the page, with their defaults as text."""
    (section,) = [part for part in PAGE.split("\n## ") if re.match(rf"[^\n]*`\[+{table}\]+`", part)]
    found: dict[str, str] = {}
    for keys, default in re.findall(r"^\| (`[^|]*`) \|([^|]*)\|", section, re.MULTILINE):
        for key in re.findall(r"`([^`]+)`", keys):
            found[key] = default.strip().strip("`")
    return found


@pytest.mark.parametrize(("table", "model"), MODELS)
def test_page(table: str, model: type[Section]) -> None:
    listed = rows(table)
    assert set(model.model_fields) <= set(listed)
    for key, field in model.model_fields.items():
        if field.is_required() or field.default is None or key in ("type", "port"):
            continue
        if re.fullmatch(r"\[.+\]\(.+\)", listed[key]):
            continue  # it is on the page that this leads to
        written: Any = tomllib.loads(f"x = {listed[key]}")["x"]
        default = field.get_default(call_default_factory=True)
        assert field_reader(model, key).validate_python(written) == default


def test_what_the_page_shows_is_right(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    shown = [block for block in blocks if block.startswith("[[")]
    gateways = "".join(
        f'[[checkers]]\nname = "gw{index}"\ntype = "ping"\naddress = "192.0.2.{index}"\non_failure = "none"\n'
        for index in (1, 2)
    )
    examined = examine(write(tmp_path, "\n".join([SHOP, gateways, *shown])))
    assert len(shown) >= 2
    assert (examined.problems, examined.warnings) == ((), ())


def test_the_scripts_of_a_service_are_named() -> None:
    (cell,) = re.findall(r"^\| `scripts` \|[^\n]*", PAGE, re.MULTILINE)
    assert set(Scripts.model_fields) <= set(re.findall(r"`(\w+)`", cell))
