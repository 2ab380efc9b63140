"""Which backend is taken, and what is said about it."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from nlbfarm import backends, plugins
from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.errors import HostError, PluginError, UsageError
from nlbfarm.interfaces import Usability


class Usable(MemoryBackend):
    """A vendor's backend."""

    name = "vendor"


@pytest.fixture
def no_nftables(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe() -> Usability:
        return Usability(False, "no nftables here: install something")

    monkeypatch.setattr(NftablesBackend, "probe", probe)


def plug_in(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name, value, plugins.Kind.BACKEND.value) for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)


async def test_by_name() -> None:
    backend, why = await backends.choose("memory")
    assert isinstance(backend, MemoryBackend)
    assert "as configured" in why


async def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'nftable'.*'auto'.*nftables, memory"):
        await backends.choose("nftable")


async def test_by_name_and_unusable_is_an_error_that_says_why(no_nftables: None) -> None:
    with pytest.raises(HostError, match=r"nftables.*install something"):
        await backends.choose("nftables")


async def test_auto_never_takes_memory(no_nftables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)
    with pytest.raises(HostError, match=r"no packet filter can work.*nftables: .*install something"):
        await backends.choose("auto")


async def test_auto_takes_a_plug_in_when_nothing_built_in_works(
    no_nftables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(monkeypatch, vendor=f"{__name__}:Usable", broken="no.such.module:Backend")
    backend, why = await backends.choose("auto")
    assert type(backend) is Usable
    assert "install something" in why
    assert "broken" in why
    assert backends.names() == ["nftables", "memory", "broken", "vendor"]
    surveyed = dict(await backends.survey())
    assert surveyed["vendor"].usable
    assert "cannot be imported" in surveyed["broken"].detail


async def test_a_plug_in_that_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, odd="json:loads")
    with pytest.raises(PluginError, match="not a class that implements"):
        await backends.choose("odd")


async def test_a_plug_in_cannot_take_the_name_of_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, memory="json:loads")
    with pytest.raises(PluginError, match='two packages bring "memory"'):
        await backends.choose("memory")
