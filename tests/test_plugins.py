"""Plug-ins: ours, and a vendor's that is really installed (its metadata lies on the path)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from tests.config_support import KEYS, SHOP, changed, write
from tests.plugin_support import install, site_directory

from nlbfarm import assembly, config, plugins
from nlbfarm.errors import PluginError
from nlbfarm.interfaces import Checker, FilterBackend
from nlbfarm.plugins import BUILT_IN, Kind, available, load
from nlbfarm.runtime import Runtime
from nlbfarm.vip import LinuxVIPManager
from nlbfarm.vip.memory import MemoryVIPManager

ROOT = Path(__file__).parent.parent


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with site_directory(tmp_path / "site") as directory:
        yield directory


def test_ours_are_the_entry_points_of_the_project() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {kind.value: dict(found) for kind, found in BUILT_IN.items()} == listed


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, found in BUILT_IN.items() for name in found]
)
def test_ours_can_be_loaded(kind: Kind, name: str) -> None:
    assert issubclass(load(kind, name, plugins.INTERFACE[kind]), plugins.INTERFACE[kind])


def test_a_vendors(site: Path) -> None:
    install(
        site,
        "acme-farm",
        "[nlbfarm.checkers]\nacme = acme_farm:AcmeChecker\n",
        "from nlbfarm.interfaces import Checker, CheckResult\n"
        "class AcmeChecker(Checker):\n"
        "    async def check(self):\n"
        "        return CheckResult(True, 'fine')\n",
    )
    found = available(Kind.CHECKER)
    assert set(found) == {"acme", *BUILT_IN[Kind.CHECKER]}
    assert found["acme"].origin == "acme-farm"
    assert load(Kind.CHECKER, "acme", Checker).__name__ == "AcmeChecker"  # type: ignore[type-abstract]


def test_what_does_not_work_is_said_when_it_is_asked_for(site: Path) -> None:
    install(
        site,
        "acme-bad",
        "[nlbfarm.backends]\nraises = acme_bad_raises:X\nmissing = acme_bad:Gone\nother = acme_bad:Other\n",
        "class Other: pass\n",
    )
    (site / "acme_bad_raises.py").write_text("raise RuntimeError('no licence')\n")
    assert {"raises", "missing", "other"} < set(available(Kind.BACKEND))
    for name, why in (
        (
            "raises",
            r'plug-in "raises" \(acme_bad_raises:X, from acme-bad\) cannot be imported: RuntimeError: no lic',
        ),
        ("missing", "cannot be imported: AttributeError"),
        ("other", "is not a class that implements nlbfarm.interfaces.FilterBackend"),
        ("nothing", r'nothing called "nothing" is installed for nlbfarm.backends \(there: memory, nfqueue'),
    ):
        with pytest.raises(PluginError, match=why):
            load(Kind.BACKEND, name, FilterBackend)  # type: ignore[type-abstract]


def test_two_packages_with_one_name(site: Path) -> None:
    install(site, "acme-one", "[nlbfarm.services]\nx = acme_one:X\n")
    install(site, "acme-two", "[nlbfarm.services]\nx = acme_two:X\n")
    with pytest.raises(
        PluginError, match=r'two packages bring "x" for nlbfarm.services: .*uninstall one of them'
    ):
        available(Kind.SERVICE)


def test_nobody_takes_a_name_of_ours(site: Path) -> None:
    install(site, "acme-thief", "[nlbfarm.backends]\nnftables = acme_thief:X\n")
    with pytest.raises(PluginError, match=r'"nftables" for nlbfarm.backends: nlbfarm and acme-thief'):
        available(Kind.BACKEND)


VENDOR = """
from nlbfarm.heartbeat.udp import UdpHeartbeat
from nlbfarm.interfaces import Checker, CheckResult
from nlbfarm.vip.memory import MemoryVIPManager

class Carrier(UdpHeartbeat):
    def __init__(self, local, peers, *, port, dscp, clock):
        super().__init__(local, peers, port=port, dscp=dscp, clock=clock)
        self.told = (local, peers, port, dscp)

class Manager(MemoryVIPManager):
    def __init__(self, specs, journal):
        super().__init__(specs)
        self.told = (specs, journal)

class Odd(UdpHeartbeat):
    def __init__(self):
        pass

class OddManager(MemoryVIPManager):
    def __init__(self, specs, journal):
        raise OSError("no licence")

class Bad(Checker):
    pass
"""


@pytest.fixture
def vendor(site: Path) -> Path:
    install(
        site,
        "acme-all",
        "[nlbfarm.heartbeats]\ncarrier = acme_all:Carrier\nodd = acme_all:Odd\n"
        "[nlbfarm.vips]\nmanager = acme_all:Manager\nodd = acme_all:OddManager\n"
        "[nlbfarm.checkers]\nbad = acme_all:Bad\n",
        VENDOR,
    )
    return site


async def built(tmp_path: Path, filter_keys: str = "", heartbeat: str = "", checkers: str = "") -> Runtime:
    text = changed(
        ("[heartbeat]\n", f'[filter]\nbackend = "memory"\n{filter_keys}\n[heartbeat]\n{heartbeat}\n')
    )
    found = config.load(write(tmp_path, text + checkers))
    return await assembly.build(found, KEYS, 1, runtime_dir=tmp_path / "run", state_dir=tmp_path / "lib")


async def test_a_node_is_built_with_a_vendors_parts(vendor: Path, tmp_path: Path) -> None:
    runtime = await built(tmp_path, 'vip_manager = "manager"', 'transport = "carrier"\nport = 5000\ndscp = 8')
    heartbeat: Any = runtime.parts.heartbeat
    assert type(heartbeat).__name__ == "Carrier"
    local = [IPv4Address("192.0.2.11"), IPv4Address("198.51.100.11")]
    peers = {2: [IPv4Address("192.0.2.12"), IPv4Address("198.51.100.12")]}
    assert heartbeat.told == (local, peers, 5000, 8)
    manager: Any = runtime.parts.vips
    assert type(manager).__name__ == "Manager"
    specs, journal = manager.told
    assert [str(spec.address) for spec in specs] == ["192.0.2.100"]
    assert journal == tmp_path / "run" / "shop" / "journal.json"
    await runtime.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"heartbeat": 'transport = "odd"'},
            r'heartbeat\.transport: acme_all\.Odd \(plug-in "odd"\) cannot be made: TypeError: .*argument',
        ),
        (
            {"filter_keys": 'vip_manager = "odd"'},
            r"filter\.vip_manager: acme_all\.OddManager .* cannot be made: OSError: no licence",
        ),
        (
            {"checkers": '\n[[checkers]]\nname = "b"\ntype = "bad"\n'},
            r'checker "b": acme_all\.Bad .* cannot be made: TypeError: .*abstract',
        ),
    ],
)
async def test_a_part_that_breaks_its_contract(
    vendor: Path, tmp_path: Path, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        await built(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", LinuxVIPManager),
        ('backend = "nftables"', LinuxVIPManager),
        ('backend = "memory"', MemoryVIPManager),
        ('vip_manager = "memory"', MemoryVIPManager),
        ('backend = "nftables"\nvip_manager = "linux"', LinuxVIPManager),
    ],
)
def test_which_vip_manager(tmp_path: Path, keys: str, expected: type) -> None:
    found = config.load(write(tmp_path, f"{SHOP}\n[filter]\n{keys}\n"))
    assert type(assembly.vip_manager(found, tmp_path / "journal.json")) is expected
