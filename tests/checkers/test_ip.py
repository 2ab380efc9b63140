"""The checker ``ip``: what the host and the network say of virtual IPs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import IPv4Address

import pytest
from tests.checkers.support import SHORT, look

from nlbfarm.checkers import HostView, IpChecker, build
from nlbfarm.config.checkers import IpChecker as Entry
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult

ONE, TWO = IPv4Address("192.0.2.100"), IPv4Address("192.0.2.101")


class Network:
    """A host and its network, as the VIP manager sees them."""

    def __init__(self) -> None:
        self.here: set[IPAddress] = {ONE, TWO}
        self.claims: dict[IPAddress, str] = {}
        self.error: Exception | None = None
        self.hangs = False

    def present(self, address: IPAddress) -> bool:
        return address in self.here

    async def claimed(self) -> Mapping[IPAddress, str]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return self.claims

    def checker(self, *addresses: IPAddress) -> IpChecker:
        return IpChecker(addresses, present=self.present, claimed=self.claimed, timeout=SHORT)


async def test_here_and_nobody_elses() -> None:
    network = Network()
    one, both = await look(network.checker(ONE)), await look(network.checker(ONE, TWO))
    assert one == CheckResult(True, "192.0.2.100 is on this host, and nobody else answers for it")
    told = "192.0.2.100 and 192.0.2.101 are on this host, and nobody else answers for them"
    assert both == CheckResult(True, told)


async def test_gone_and_taken() -> None:
    network = Network()
    network.here = {TWO}
    network.claims = {ONE: "02:00:00:00:00:99"}
    who = "192.0.2.100 is in use by 02:00:00:00:00:99"
    taken = f"{who}, not a node of this farm: give that machine another address"
    assert await look(network.checker(ONE, TWO)) == CheckResult(
        False, f"192.0.2.100 is not on this host; {taken}"
    )
    assert (await look(network.checker(TWO))).ok
    network.here.add(ONE)
    assert await look(network.checker(ONE)) == CheckResult(False, taken)


async def test_a_network_that_cannot_be_asked() -> None:
    network = Network()
    network.error = HostError("eth0, where clients of 192.0.2.100 arrive, has no link")
    result = await look(network.checker(ONE))
    told = (
        "the network cannot be asked who else has it: eth0, where clients of 192.0.2.100 arrive, has no link"
    )
    assert result == CheckResult(False, told)
    network.hangs = True
    result = await look(network.checker(ONE))
    assert result == CheckResult(False, "the network could not be asked who else has it within 0.2 s")


async def test_by_default_all_of_the_farm() -> None:
    network = Network()
    view = HostView(vips=(ONE, TWO), vip_present=network.present, vip_claimed=network.claimed)
    entry = {"name": "vip", "type": "ip"}
    every, one = (Entry.model_validate(entry | more) for more in ({}, {"address": "192.0.2.101"}))
    network.here = {TWO}
    assert (await look(build(every, view))).detail == "192.0.2.100 is not on this host"
    assert (await look(build(one, view))).ok
    with pytest.raises(UsageError, match="names no virtual IP"):
        build(every)
