"""The JSON Schema for editors: fresh, right for every example, and wrong for what is wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from scripts.schema import FILE, main
from tests.config_support import SHOP, changed, write

pytest.importorskip("jsonschema", reason="lack of jsonschema")
from jsonschema import Draft202012Validator

from nlbfarm.config import dump, load
from nlbfarm.config.draft import LISTS, SINGLE
from nlbfarm.config.schema import json_schema
from nlbfarm.config.types import Duration, between, written

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def errors(text: str) -> list[str]:
    """Return what an editor would complain about, with where."""
    return [
        f"{error.json_path.removeprefix('$.')}: {error.message}"
        for error in VALIDATOR.iter_errors(tomllib.loads(text))
    ]


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)


def test_what_is_published_is_fresh() -> None:
    assert main(["--check"]) == 0, "run python scripts/schema.py"
    assert json.loads(FILE.read_text(encoding="utf-8")) == SCHEMA


def test_a_stale_one_is_noticed_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schema.json"
    assert main(["--check", "--file", str(file)]) == 1
    assert "out of date; run python scripts/schema.py" in capsys.readouterr().err
    assert main(["--file", str(file)]) == 0
    assert main(["--check", "--file", str(file)]) == 0
    assert file.read_bytes() == FILE.read_bytes()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_right_and_says_where_its_schema_is(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert errors(text) == []
    directive = text.splitlines()[0]
    assert directive.startswith("#:schema ")
    assert (example.parent / directive.removeprefix("#:schema ")).resolve() == FILE


def test_every_table_is_known(tmp_path: Path) -> None:
    assert set(SCHEMA["properties"]) == {*SINGLE, *LISTS}
    assert SCHEMA["required"] == ["farm", "nodes", "vips", "rules"]
    assert errors(SHOP) == []
    assert list(VALIDATOR.iter_errors(dump(load(write(tmp_path))))) == []


def tables(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the file", schema
    yield from ((name, one) for name, one in schema["$defs"].items() if one["type"] == "object")


@pytest.mark.parametrize(("name", "table"), list(tables(SCHEMA)))
def test_every_key_is_explained_and_no_other_accepted(name: str, table: Mapping[str, Any]) -> None:
    assert table["additionalProperties"] is False
    for key, about in table["properties"].items():
        assert about["description"].endswith((".", "?", ")", '"')), f"{name}: {key}"
        assert "``" not in about["description"]


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("interval =", "intervall =", "heartbeat: Additional properties are not allowed ('intervall'"),
        ("[heartbeat]", "[hartbeat]", "$: Additional properties are not allowed ('hartbeat' was unexpected)"),
        ('"100ms"', "100", "heartbeat.interval: 100 is not of type 'string'"),
        ('"100ms"', '"100"', "heartbeat.interval: '100' does not match"),
        ("lost_after = 5", "lost_after = 2", "heartbeat.lost_after: 2 is less than the minimum of 3"),
        ("id = 2", "id = 256", "nodes[1].id: 256 is greater than the maximum of 255"),
        ('name = "web2"', 'name = "web 2"', "nodes[1].name: 'web 2' does not match"),
        ("[80, 443]", "[]", "rules[0].ports: [] should be non-empty"),
        ("[80, 443]", "80", "rules[0].ports: 80 is not of type 'array'"),
        ('"client-port"', '"client_port"', "rules[0].affinity: 'client_port' is not one of"),
        ('on_failure = "wait"', 'on_failure = "leave"', "checkers[0]: "),
        ('type = "http"', "", "checkers[0]: "),
        ('url = "http://127.0.0.1/health"', 'adress = "127.0.0.1"', "checkers[0]: "),
        ('type = "http"', 'type = "htp"', "checkers[0]: "),
    ],
)
def test_what_is_wrong_is_refused(old: str, new: str, where: str) -> None:
    (found,) = errors(changed((old, new)))
    assert found.startswith(where)


@pytest.mark.parametrize(
    ("service", "right"),
    [
        ('systemd = "apache2"', True),
        ('command = ["/usr/sbin/db", "-f"]\nenvironment = { A = "1" }\nstop_signal = "SIGINT"', True),
        ('scripts = { start = ["/a"], stop = ["/b"] }', True),
        ('type = "acme"\noptions = { port = 1 }', True),
        ("", False),
        ('systemd = "apache2"\nwindows = "W3SVC"', False),
        ('systemd = "apache2"\nuser = "root"', False),
        ('command = "/usr/sbin/db -f"', False),
        ('scripts = { start = ["/a"] }', False),
        ('systemd = "apache2"\nmax_restarts = -1', False),
    ],
)
def test_services(service: str, right: bool) -> None:
    assert (errors(f'{SHOP}\n[[services]]\nname = "s"\n{service}\n') == []) is right


def test_a_plug_in_has_options_and_no_name_of_ours() -> None:
    entry = '\n[[checkers]]\nname = "d"\ntype = "disk-space"\noptions = { path = "/" }\n'
    assert errors(SHOP + entry) == []
    assert errors(SHOP + entry.replace("disk-space", "http")) != []


@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        ("http", 'url = "http://a/"\nstatus = 200'),
        ("http", 'url = "http://a/"\nstatus = "200-299"'),
        ("http", 'url = "http://a/"\nstatus = [200, "300-308"]'),
        ("interface", 'interfaces = "eth0"'),
        ("interface", 'interfaces = ["eth0", "Ethernet 2"]'),
        ("module", 'farm = "back"\nstates = "UP"'),
        ("resources", 'disk_path = "/"\ndisk_free = "1.5GB"\ncpu_percent = 95.5'),
    ],
)
def test_what_can_be_written_in_several_ways(type_: str, keys: str) -> None:
    assert errors(f'{SHOP}\n[[checkers]]\nname = "c"\ntype = "{type_}"\n{keys}\n') == []


def test_bounds_of_a_time_are_told_where_the_schema_of_its_type_stands() -> None:
    class Model(BaseModel):
        wait: Annotated[Duration, between(timedelta(seconds=1), timedelta(hours=1))] = timedelta(seconds=5)
        word: Annotated[str, written("a+")] = "a"

    found = Model.model_json_schema()["properties"]
    assert found["wait"]["description"] == 'A time from "1s" to "1h".'
    assert found["word"]["pattern"] == "^(?:a+)$"
