"""The journal file: what it says after every kind of accident."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.errors import HostError
from nlbfarm.vip.journal import Entry, Journal, Kind

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the journal is for Linux")

SYSCTL = Entry(Kind.SYSCTL, "eth0", 2, "arp_announce", "0", "2")
TABLE = Entry(Kind.TABLE, "eth0", 2, "nlbfarm_vip_192_0_2_100")
ADDRESS = Entry(Kind.ADDRESS, "eth0", 2, "192.0.2.100/32", new="192.0.2.100/32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "shop" / "journal.json"


def reread(path: Path) -> Journal:
    journal = Journal(path)
    journal.load()
    return journal


def written(path: Path) -> Journal:
    journal = reread(path)
    for entry in (SYSCTL, TABLE, ADDRESS):
        journal.add(entry)
    return journal


def test_on_disk_at_once_and_gone_when_empty(path: Path) -> None:
    journal = reread(path)
    assert not path.exists()
    for expected in ([SYSCTL], [SYSCTL, TABLE], [SYSCTL, TABLE, ADDRESS]):
        journal.add(expected[-1])
        journal.add(expected[-1])  # written down before: no second time
        assert list(reread(path).entries) == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for entry in (ADDRESS, TABLE, SYSCTL):
        journal.remove(entry)
        journal.remove(entry)
        assert entry not in reread(path).entries
    assert list(path.parent.iterdir()) == []


def test_never_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the state before it, in the file and in memory; the error says where."""
    journal = written(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    extra = Entry(Kind.TABLE, "eth0", 2, "nlbfarm_vip_192_0_2_101")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(HostError, match=r"cannot write the journal .*journal\.json: No space left"):
            journal.add(extra)
    assert list(journal.entries) == list(reread(path).entries) == [SYSCTL, TABLE, ADDRESS]
    assert not path.with_name("journal.json.new").exists()  # swept up by the next reader


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_another_boot_is_forgotten(path: Path) -> None:
    written(path)
    change(path, lambda data: data.update(boot="00000000-0000-0000-0000-000000000000"))
    assert list(reread(path).entries) == []
    assert not path.exists()


def test_a_namespace_that_is_gone_is_forgotten(path: Path) -> None:
    written(path)
    change(path, lambda data: data.update(namespace="4:1"))
    assert list(reread(path).entries) == []


def test_another_version_is_left_alone(path: Path) -> None:
    written(path)
    change(path, lambda data: data.update(version=2))
    before = path.read_bytes()
    with pytest.raises(HostError, match=r"another version .*format 2.*cleanup"):
        reread(path)
    assert path.read_bytes() == before


def _first(data: dict[str, Any], **values: object) -> None:
    data["entries"][0].update(values)


DAMAGES: list[Callable[[dict[str, Any]], object]] = [
    lambda data: data.pop("entries"),
    lambda data: data.pop("version"),
    lambda data: data.update(entries=None),
    lambda data: data["entries"].append("address"),
    lambda data: data["entries"].append({}),
    lambda data: _first(data, kind="file"),
    lambda data: _first(data, index="2"),
    lambda data: _first(data, index=True),
    lambda data: _first(data, old=0),
    lambda data: _first(data, name="../../kernel/panic"),
    lambda data: _first(data, old="0\n1"),
    lambda data: data["entries"][1].update(name="filter; flush ruleset"),
    lambda data: data["entries"][2].update(name="192.0.2.11/24"),
    lambda data: data["entries"][2].update(name="eth0"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_we_did_not_write_is_not_acted_on(
    path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    written(path)
    change(path, damage)
    damaged = path.read_bytes()
    for _ in range(2):  # and the next one does not forget it either
        with pytest.raises(HostError, match="is damaged") as caught:
            reread(path)
        for advice in (
            "ip address show label '*:nlb'",
            "nft list tables arp",
            "sysctl net.ipv4.conf.IFACE.arp_announce",
            f"rm {path}",
        ):
            assert advice in str(caught.value)
    assert path.read_bytes() == damaged
    path.unlink()
    assert list(reread(path).entries) == []  # as it was told to do: the next start goes on


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, b"{", b"[]", b"null", b'"x"', b"\xff\xfe"])
def test_rubbish_is_left_where_it_is(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(HostError, match="is damaged"):
            reread(path)
    assert path.read_bytes() == raw
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("length", range(0, 300, 37))
def test_a_cut_file_is_damaged(path: Path, length: int) -> None:
    written(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(HostError, match="is damaged"):
        reread(path)


def test_unreadable(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(HostError, match=r"cannot read the journal .*journal\.json"):
        reread(path)
