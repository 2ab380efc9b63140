"""What the administrator wants, kept in a file; damage never makes a stopped node serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nlbfarm.admin import AdminFile, AdminState
from nlbfarm.core.settings import Admin
from nlbfarm.errors import HostError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop" / "admin.json"


def test_what_was_saved_is_read_by_the_next_process(path: Path) -> None:
    assert AdminFile(path).read() == AdminState()
    for state in (AdminState(Admin.DRAIN, {"web": 3, "api": 0}), AdminState(Admin.STOP), AdminState()):
        AdminFile(path).save(state)
        assert AdminFile(path).read() == state
    assert [file.name for file in path.parent.iterdir()] == ["admin.json"]


def test_without_a_file_nothing_is_kept() -> None:
    file = AdminFile(None)
    file.save(AdminState(Admin.STOP))
    assert file.read() == AdminState()


GOOD = {"version": 1, "admin": "run", "powers": {"web": 3}}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not JSON"),
        ('{"version": 1, "admin": "run", "pow', "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("[]", ""),
        ("null", ""),
        ("[" * 5000, ""),
        ("7" * 70_000, "too long"),
        (json.dumps(GOOD | {"version": 2}), "of version 2"),
        (json.dumps({"version": 1, "powers": {}}), "without 'admin'"),
        (json.dumps(GOOD | {"admin": "go"}), "'go' is not a valid Admin"),
        (json.dumps(GOOD | {"powers": {"web": 65536}}), "power 65536 is not in 0..65535"),
        (json.dumps(GOOD | {"powers": {"web": True}}), "no number"),
        (json.dumps(GOOD | {"powers": 7}), ""),
    ],
)
def test_a_damaged_file_stops_the_node_and_says_what_to_do(path: Path, content: str, why: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    file = AdminFile(path)
    assert file.read() == AdminState(Admin.STOP)
    assert str(path) in file.problem
    assert why in file.problem
    assert 'run "nlbfarm-node start"' in file.problem
    assert path.read_bytes() == content.encode("latin-1")
    file.save(AdminState())
    assert file.problem == ""
    assert AdminFile(path).read() == AdminState()


@pytest.mark.posix("POSIX' error for a file in place of a directory")
def test_a_file_that_cannot_be_read_or_written_is_an_error(path: Path) -> None:
    path.parent.write_text("no directory")
    with pytest.raises(HostError, match="cannot be read"):
        AdminFile(path).read()
    with pytest.raises(HostError, match="cannot be written"):
        AdminFile(path).save(AdminState())
