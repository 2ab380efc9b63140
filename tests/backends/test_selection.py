"""Which backend is taken, and what is said about it."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from nlbfarm import backends, plugins
from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.backends.nfqueue import NfqueueBackend
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.backends.windivert import WinDivertBackend
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import Group, Rule
from nlbfarm.errors import HostError, PluginError, UsageError
from nlbfarm.interfaces import Usability


class Usable(MemoryBackend):
    """A vendor's backend."""

    name = "vendor"


class Asking(MemoryBackend):
    """A vendor's backend that goes by what it is told."""

    name = "asking"

    def __init__(self, *, queues: int, bucket: BucketFunction | None, udp_idle: float) -> None:
        super().__init__()
        self.told = queues, bucket, udp_idle


def by_client(facts: PacketFacts, rule: Rule, group: Group) -> int:
    """A bucket function."""
    return facts.source.packed[-1]


BY_CLIENT = f"{__name__}:by_client"


@pytest.fixture
def no_nftables(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe() -> Usability:
        return Usability(False, "no nftables here: install something")

    for backend in (NftablesBackend, NfqueueBackend, WinDivertBackend):
        monkeypatch.setattr(backend, "probe", probe)


def plug_in(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name, value, plugins.Kind.BACKEND.value) for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)


async def test_by_name() -> None:
    backend, why = await backends.choose("memory")
    assert isinstance(backend, MemoryBackend)
    assert "as configured" in why


async def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'nftable'.*'auto'.*nftables, nfqueue, windivert, memory"):
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
    assert backends.names() == ["nftables", "nfqueue", "windivert", "memory", "broken", "vendor"]
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


async def test_a_backend_is_told_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, asking=f"{__name__}:Asking", vendor=f"{__name__}:Usable")
    options = backends.Options(queues=3, bucket=BY_CLIENT, udp_idle=5.0)
    backend, _ = await backends.choose("asking", options)
    assert isinstance(backend, Asking)
    queues, bucket, udp_idle = backend.told
    assert (queues, udp_idle) == (3, 5.0)
    assert bucket is not None
    assert bucket.__qualname__ == "by_client"
    backend, _ = await backends.choose("vendor", backends.Options(queues=3))
    assert isinstance(backend, Usable)


async def test_a_bucket_function_that_the_backend_cannot_go_by(
    no_nftables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(monkeypatch, asking=f"{__name__}:Asking", another=f"{__name__}:Usable")
    with pytest.raises(UsageError, match=r"'memory'.*no bucket function but its own.*nfqueue"):
        await backends.choose("memory", backends.Options(bucket=BY_CLIENT))
    backend, why = await backends.choose("auto", backends.Options(bucket=BY_CLIENT))
    assert isinstance(backend, Asking)
    assert "another: it knows no bucket function" in why


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no.such.module:function", r"no\.such\.module:function cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:nothing", "cannot be imported: AttributeError"),
        (f"{__name__}:BY_CLIENT", "is a str, no function"),
    ],
)
async def test_a_bucket_function_that_is_none(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        await backends.choose("auto", backends.Options(bucket=reference))
