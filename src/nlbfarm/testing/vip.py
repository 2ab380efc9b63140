"""Conformance check for ``VIPManager``: what every implementation has to do, stated as a test.

A vendor's own manager can be checked with it the same way as ours are::

    async def test_my_manager() -> None:
        await check_vip_manager(lambda: MyManager(specs, journal), vips=[IPv4Address("192.0.2.100")])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import VIPManager

__all__ = ["check_vip_manager"]


def _same(before: object, after: object, when: str) -> None:
    assert before == after, f"the host is not as it was {when}:\nbefore: {before}\nafter:  {after}"


async def check_vip_manager(
    make: Callable[[], VIPManager],
    *,
    vips: Collection[IPAddress],
    snapshot: Callable[[], object] | None = None,
    remove: Callable[[IPAddress], Awaitable[None]] | None = None,
    neighbour: IPAddress | None = None,
    stranger: Callable[[IPAddress], Awaitable[None]] | None = None,
) -> None:
    """Check a VIP manager against the contract of ``nlbfarm.interfaces.VIPManager``.

    Args:
        make: Makes a manager; all that it makes are for the same VIPs, host and journal. The VIPs
            must not be on the host, and nobody may answer for them.
        vips: The VIPs that ``make``'s managers are for.
        snapshot: Returns what the managers may change on the host, in a form that can be compared.
        remove: Removes a VIP from the host behind the manager's back.
        neighbour: An address that answers ARP on an interface of a VIP.
        stranger: Makes somebody else answer for a VIP; called last, and never undone.

    Raises:
        AssertionError: The manager breaks the contract; the message says how.
    """
    look = snapshot if snapshot is not None else lambda: None
    before = look()
    await _check_cycle(make, vips, look, before)
    await _check_killed(make, vips, look, before)
    if remove is not None:
        await _check_removed(make, vips, remove, look, before)
    await _check_network(make, vips, neighbour, stranger)
    _same(before, look(), "after all checks")


async def _check_cycle(
    make: Callable[[], VIPManager], vips: Collection[IPAddress], look: Callable[[], object], before: object
) -> None:
    everywhere, nowhere = dict.fromkeys(vips, True), dict.fromkeys(vips, False)
    manager = make()
    assert dict(manager.present()) == nowhere, "present() before open() must be False for each VIP"
    try:
        await manager.up()
    except NlbfarmError:
        _same(before, look(), "after up() without open()")
    else:
        raise AssertionError("up() before open() must raise")
    await manager.close()
    await manager.close()
    assert list(await manager.cleanup()) == [], "cleanup() of a clean host must find nothing"

    manager = make()
    try:
        assert list(await manager.open()) == [], "open() on a clean host must put back nothing"
        _same(before, look(), "after open()")
        assert dict(manager.present()) == nowhere, "no VIP is present before up()"
        await manager.down()
        await manager.announce()
        assert dict(await manager.claimed()) == {}, "claimed() names somebody, but nobody is there"
        _same(before, look(), "after down(), announce() and claimed() before up()")
        for _ in range(2):
            await manager.up()
            assert dict(manager.present()) == everywhere, "each VIP must be present after up()"
            once = look()
            await manager.up()
            _same(once, look(), "after a second up(): it must change nothing")
            await manager.announce()
            assert dict(manager.present()) == everywhere
            await manager.down()
            assert dict(manager.present()) == nowhere, "no VIP may be present after down()"
            _same(before, look(), "after down()")
            await manager.down()
        await manager.up()
    finally:
        await manager.close()
    assert dict(manager.present()) == nowhere, "no VIP may be present after close()"
    _same(before, look(), "after close()")
    await manager.close()


async def _check_killed(
    make: Callable[[], VIPManager], vips: Collection[IPAddress], look: Callable[[], object], before: object
) -> None:
    for through_open in (False, True):
        killed, heir = make(), make()
        await killed.open()
        try:
            await killed.up()
            lines = await (heir.open() if through_open else heir.cleanup())
            assert len(lines) >= len(vips), f"each thing put back must be listed; got {list(lines)}"
            assert not any(heir.present().values()), "no VIP may be left of a killed process"
            assert list(await heir.cleanup()) == [], "a second cleanup() must find nothing"
        finally:
            await heir.close()
            await killed.close()
        _same(before, look(), "after the cleanup of a killed process")


async def _check_removed(
    make: Callable[[], VIPManager],
    vips: Collection[IPAddress],
    remove: Callable[[IPAddress], Awaitable[None]],
    look: Callable[[], object],
    before: object,
) -> None:
    victim = next(iter(vips))
    manager = make()
    await manager.open()
    try:
        await manager.up()
        await remove(victim)
        assert manager.present()[victim] is False, "present() must see that somebody removed the address"
        await manager.up()
        assert manager.present()[victim] is True, "up() must bring a removed address back"
        await remove(victim)
    finally:
        await manager.close()
    _same(before, look(), "after close() with an address removed by somebody else")


async def _check_network(
    make: Callable[[], VIPManager],
    vips: Collection[IPAddress],
    neighbour: IPAddress | None,
    stranger: Callable[[IPAddress], Awaitable[None]] | None,
) -> None:
    manager = make()
    await manager.open()
    try:
        assert await manager.reachable([]) == frozenset()
        if neighbour is not None:
            found = await manager.reachable([neighbour])
            assert found == {neighbour}, f"{neighbour} answers ARP; reachable() found {set(found)}"
        if stranger is not None:
            taken = next(iter(vips))
            await stranger(taken)
            claimed = await manager.claimed()
            assert set(claimed) == {taken}, f"a stranger answers for {taken}; claimed() says {dict(claimed)}"
            assert len(claimed[taken].split(":")) == 6, "claimed() must give the stranger's MAC"
    finally:
        await manager.close()
