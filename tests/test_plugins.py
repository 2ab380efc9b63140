"""Plug-ins: ours, and a vendor's that is really installed (its metadata lies on the path)."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from nlbfarm import plugins
from nlbfarm.errors import PluginError
from nlbfarm.interfaces import Checker, FilterBackend
from nlbfarm.plugins import BUILT_IN, Kind, available, load

ROOT = Path(__file__).parent.parent


def install(directory: Path, name: str, entry_points: str, source: str = "") -> None:
    """Put a distribution with one module, as pip would leave it, into a directory."""
    info = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (directory / f"{name.replace('-', '_')}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


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
    assert set(found) == {"acme", "http", "tcp"}
    assert found["acme"].origin == "acme-farm"
    assert load(Kind.CHECKER, "acme", Checker).__name__ == "AcmeChecker"  # type: ignore[type-abstract]
    sys.modules.pop("acme_farm")


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
        ("nothing", r'nothing called "nothing" is installed for nlbfarm.backends \(there: memory, nftables'),
    ):
        with pytest.raises(PluginError, match=why):
            load(Kind.BACKEND, name, FilterBackend)  # type: ignore[type-abstract]
    sys.modules.pop("acme_bad")


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
