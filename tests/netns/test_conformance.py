"""The corpus on the wire, through the filters in the kernel and beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.backends.nfqueue import NfqueueBackend
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.core.buckets import BucketStates
from nlbfarm.testing.conformance import bench, check_filter_backend
from nlbfarm.testing.conformance.__main__ import main
from nlbfarm.testing.conformance.engine import APART

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "conformance.md"

pytestmark = pytest.mark.netns


async def test_nftables_decides_as_the_oracle_does(capsys: pytest.CaptureFixture[str]) -> None:
    """As the documentation has it."""
    example, _ = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    report = await names["check"](NftablesBackend)
    assert f"{report.compared} compared, 0 differences" in capsys.readouterr().out
    print(f"\n{report}")
    assert report.differences == []
    assert report.compared >= 17_000
    assert report.whole == {4: True, 6: True}


async def test_nfqueue_decides_as_the_oracle_does() -> None:
    usability = await NfqueueBackend.probe()
    if not usability.usable:
        pytest.skip(f"nfqueue: {usability.detail}")
    report = await check_filter_backend(NfqueueBackend, packets=20_000)
    print(f"\n{report}")
    assert report.compared >= 17_000
    for variant in (partial(NfqueueBackend, path="python"), partial(NfqueueBackend, queues=2)):
        report = await check_filter_backend(variant, packets=3_000)
        assert report.compared >= 2_500


def test_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nftables", "--packets", "300", "--seed", "9"]) == 0
    assert "(seed 9)" in capsys.readouterr().out


class LeaseForEver(NftablesBackend):
    def lease(self, seconds: float) -> bool:
        return super().lease(1.0)


class AdoptIsOwn(NftablesBackend):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply(
            {name: replace(state, own=state.own | state.adopt, adopt=0) for name, state in states.items()}
        )


class Forgetful(NftablesBackend):
    """It lets go of what it remembers when a bucket moves: what a plain hash filter does."""

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({name: replace(state, drain=0) for name, state in states.items()})


@pytest.mark.parametrize("wrong", [LeaseForEver, AdoptIsOwn, Forgetful])
async def test_a_wrong_filter_is_found_out(wrong: type[NftablesBackend]) -> None:
    with pytest.raises(AssertionError, match="decides otherwise than the oracle") as found:
        await check_filter_backend(wrong, packets=2_000, seed=11)
    assert "send these again: check_filter_backend(make, seed=11" in str(found.value)


async def test_a_closed_filter_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(NftablesBackend):
        async def apply(self, states: Mapping[str, BucketStates]) -> None:
            await super().apply({})

    monkeypatch.setattr(bench, "ARRIVES_WITHIN_S", 0.5)
    with pytest.raises(AssertionError, match="did not let a UDP packet in a bucket that it owns through"):
        await check_filter_backend(Closed, packets=100)


async def test_windivert_decides_as_the_oracle_does() -> None:
    """The class that runs on Windows, on pydivert's engine for Linux. It puts checksums of ICMP right."""
    pytest.importorskip("pydivert", reason="pydivert is not installed (pip install nlbfarm[windivert])")
    from nlbfarm.backends.windivert import WinDivertBackend

    usability = await WinDivertBackend.probe()
    if not usability.usable:
        pytest.skip(f"windivert: {usability.detail}")
    report = await check_filter_backend(WinDivertBackend, packets=20_000, repairs_checksums=True, apart=APART)
    print(f"\n{report}")
    assert report.differences == []
    assert report.compared >= 17_000
    assert report.whole == {4: False, 6: False}
