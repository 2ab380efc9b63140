"""Virtual IPs on Linux: addresses through netlink, ARP rewriting through nftables, ARP on packet sockets."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import structlog

from nlbfarm.core.group_mac import mac_bytes, mac_text
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import VIPManager, VipSpec
from nlbfarm.nft import Nft
from nlbfarm.vip import arp, arpio, changes
from nlbfarm.vip.changes import Host
from nlbfarm.vip.checks import check_interface, check_link, check_specs, own_address, refuse_foreign
from nlbfarm.vip.journal import Entry, Journal, Kind
from nlbfarm.vip.membership import Membership
from nlbfarm.vip.netlink import Address, Link, Netlink, Watch

__all__ = ["LinuxVIPManager"]

_log = structlog.get_logger()
_T = TypeVar("_T")

_ANNOUNCE_INTERVAL = 2.0  # seconds, RFC 5227 section 1.1
# RFC 5227 spreads its three probes over up to seven seconds, for hosts that have just been plugged in. The
# start of a node must not take as long, and a neighbour that lives answers within milliseconds.
_PROBES_AT = (0.0, 0.1, 0.25)
_PROBE_UNTIL = 0.5
_REQUESTS_AT = (0.0, 0.05)
_REQUEST_UNTIL = 0.12


class LinuxVIPManager(VIPManager):
    """Brings the VIPs of one farm up on this Linux host, for delivery by multicast.

    Order on the way up: sysctl, ARP rewriting, address, group MAC, announcement; on the way down the
    reverse. The ARP rewriting is in place before the address, so that there is no moment in
    which the host could tell somebody its own MAC for the VIP.

    What blocks (netlink, nftables, the journal) runs in one thread of the manager's own, one
    operation after the other, each to its end even if the caller is cancelled.

    Args:
        specs: The VIPs.
        journal: The journal file; its directory is made if it is missing.

    Raises:
        UsageError: A VIP is not IPv4, its delivery is not multicast, its MAC is no multicast MAC, or
            a VIP is there twice.
    """

    def __init__(self, specs: Sequence[VipSpec], journal: Path) -> None:
        self._specs = check_specs(specs)
        self._journal = Journal(journal)
        self._thread: ThreadPoolExecutor | None = None
        self._watch: Watch | None = None
        self._nft: Nft | None = None
        self._indexes: dict[str, int] = {}
        self._memberships: dict[IPv4Address, Membership] = {}
        self._up = False
        self._again: asyncio.TimerHandle | None = None

    async def open(self) -> Sequence[str]:
        return await self._run(self._open)

    async def up(self) -> None:
        await self._run(self._bring_up)
        await self.announce()
        self._stop_announcing()
        self._again = asyncio.get_running_loop().call_later(_ANNOUNCE_INTERVAL, self._announce_again)

    async def down(self) -> None:
        self._stop_announcing()
        await self._run(self._take_down)

    async def announce(self) -> None:
        if self._up:
            await self._run(self._announce)

    async def close(self) -> None:
        self._stop_announcing()
        if self._thread is None:
            return
        thread = self._thread
        try:
            await self._run(self._close)
        finally:
            if self._thread is thread:
                self._thread = None
            thread.shutdown(wait=False)

    async def cleanup(self) -> Sequence[str]:
        was_open = self._watch is not None
        try:
            return await self._run(self._cleanup)
        finally:
            if not was_open:
                await self.close()

    def present(self) -> Mapping[IPAddress, bool]:
        """Say for each VIP whether its interface has a link and the address, and while up, its ARP rewriting.

        Without a link no client gets here: the other nodes shall have this one's buckets. A VIP without
        its ARP rewriting (``nft flush ruleset`` takes it along) is worse than none: this node alone would
        get all clients. It counts as not present; ``down`` and ``up`` repair it.
        """
        return {address: self._is_present(address) for address in self._specs}

    async def claimed(self) -> Mapping[IPAddress, str]:
        own = {mac_bytes(link.mac) for link in (await self._run(_links)).values() if len(link.mac) == 17}
        strangers: dict[IPAddress, str] = {}

        def hear(interface: str, packet: arp.Arp) -> bool:
            spec = self._specs.get(packet.sender)
            if spec is None or spec.interface != interface:
                return False
            if packet.sender_mac not in own and packet.sender_mac != mac_bytes(spec.group_mac):
                strangers.setdefault(packet.sender, mac_text(packet.sender_mac))
            return len(strangers) == len(self._specs)

        def build(addresses: Sequence[IPv4Address], mac: bytes) -> list[bytes]:
            return [arp.probe(mac, address) for address in addresses]

        questions = {name: partial(build, addresses) for name, addresses in self._by_interface().items()}
        await arpio.ask(questions, hear, send_at=_PROBES_AT, until=_PROBE_UNTIL)
        return strangers

    async def reachable(self, addresses: Collection[IPAddress]) -> frozenset[IPAddress]:
        links, local = await self._run(_links_and_addresses)
        wanted: dict[str, list[tuple[IPv4Address, IPv4Address]]] = {}
        for target in addresses:
            for name in self._by_interface():
                sender = own_address(links.get(name), local, target)
                if sender is not None and sender != target and isinstance(target, IPv4Address):
                    wanted.setdefault(name, []).append((sender, target))
        asked = {target for pairs in wanted.values() for _, target in pairs}
        if not asked:
            return frozenset()
        answered: set[IPAddress] = set()

        def hear(interface: str, packet: arp.Arp) -> bool:
            if packet.operation == arp.Operation.REPLY and packet.sender in asked:
                answered.add(packet.sender)
            return answered == asked

        def build(pairs: Sequence[tuple[IPv4Address, IPv4Address]], mac: bytes) -> list[bytes]:
            return [arp.request(mac, sender, target) for sender, target in pairs]

        questions = {name: partial(build, pairs) for name, pairs in wanted.items()}
        await arpio.ask(questions, hear, send_at=_REQUESTS_AT, until=_REQUEST_UNTIL)
        return frozenset(answered)

    # What follows up to the next comment runs in the manager's thread.

    def _open(self) -> list[str]:
        if self._watch is not None:
            return []
        if not sys.platform.startswith("linux"):
            raise HostError("this VIP manager is for Linux")
        arpio.check_right()
        nft: Nft | None = None
        watch: Watch | None = None
        try:
            with Netlink() as netlink:
                nft, watch = Nft(), Watch()
                for address, spec in self._specs.items():
                    nft.check(changes.arp_script(address, spec.interface, spec.group_mac))
                links, addresses = netlink.links(), netlink.addresses()
                for spec in self._specs.values():
                    check_interface(spec, links, addresses)
                self._journal.load()
                self._refuse_foreign(links, addresses)
                restored = self._restore(Host(netlink, nft))
                watch.seed(netlink.links().values(), netlink.addresses())
            self._indexes = {spec.interface: links[spec.interface].index for spec in self._specs.values()}
        except BaseException:
            if watch is not None:
                watch.close()
            if nft is not None:
                nft.close()
            raise
        self._nft, self._watch = nft, watch
        return restored

    def _bring_up(self) -> None:
        if self._watch is None:
            raise UsageError("up() before open()")
        done: list[Entry] = []
        joined: list[IPv4Address] = []
        with Netlink() as netlink:
            host = Host(netlink, self._nft)
            links, addresses = netlink.links(), netlink.addresses()
            for spec in self._specs.values():
                check_interface(spec, links, addresses)
                check_link(spec, links[spec.interface])
            self._refuse_foreign(links, addresses)
            self._forget_lost_interfaces(links)
            try:
                for interface in self._by_interface():
                    self._set_arp_announce(host, links[interface], done)
                for address, spec in self._specs.items():
                    self._rewrite_arp(host, address, spec, links[spec.interface], done)
                for address, spec in self._specs.items():
                    self._add_address(host, address, links[spec.interface], addresses, done)
                for address, spec in self._specs.items():
                    self._join(address, spec, links[spec.interface], joined)
            except BaseException:
                for address in joined:
                    self._memberships.pop(address).close()
                with contextlib.suppress(HostError):  # what cannot be taken back stays in the journal
                    self._restore(host, done)
                raise
            self._indexes = {name: links[name].index for name in self._by_interface()}
            self._up = True

    def _set_arp_announce(self, host: Host, link: Link, done: list[Entry]) -> None:
        old, in_effect = changes.arp_announce(link.name)
        if in_effect:
            return
        for stale in self._journal.entries:  # set by us, then by somebody else: theirs is the old value now
            if (stale.kind, stale.index) == (Kind.SYSCTL, link.index):
                self._journal.remove(stale)
        new = str(changes.ARP_ANNOUNCE)
        entry = Entry(Kind.SYSCTL, link.name, link.index, "arp_announce", old, new)
        self._change(entry, lambda: host.set_sysctl(link.name, entry.name, new), done)

    def _rewrite_arp(
        self, host: Host, address: IPv4Address, spec: VipSpec, link: Link, done: list[Entry]
    ) -> None:
        entry = Entry(Kind.TABLE, link.name, link.index, changes.table_name(address))
        if entry in self._journal.entries and self._rewrites(address):
            return
        script = changes.arp_script(address, spec.interface, spec.group_mac)
        self._change(entry, lambda: host.run_nft(script), done)

    def _add_address(
        self, host: Host, address: IPv4Address, link: Link, present: Sequence[Address], done: list[Entry]
    ) -> None:
        if any((other.index, other.interface.ip) == (link.index, address) for other in present):
            return  # ours: strangers' were refused before
        entry = Entry(Kind.ADDRESS, link.name, link.index, f"{address}/32", new=f"{address}/32")
        self._change(entry, lambda: host.netlink.add_address(link, address), done)

    def _join(self, address: IPv4Address, spec: VipSpec, link: Link, joined: list[IPv4Address]) -> None:
        member = self._memberships.get(address)
        if member is not None and member.index == link.index:
            return
        if member is not None:
            self._memberships.pop(address).close()
        self._memberships[address] = Membership(link.name, link.index, spec.group_mac)
        joined.append(address)

    def _change(self, entry: Entry, make: Callable[[], None], done: list[Entry]) -> None:
        """Write a change down, then make it; strike it out again if the host refuses."""
        known = entry in self._journal.entries
        self._journal.add(entry)
        try:
            make()
        except HostError:
            if not known:
                self._journal.remove(entry)
            raise
        if not known:
            done.append(entry)

    def _take_down(self) -> None:
        self._up = False
        try:
            if self._journal.entries:
                with Netlink() as netlink:
                    self._restore(Host(netlink, self._nft))
        finally:
            while self._memberships:
                self._memberships.popitem()[1].close()

    def _cleanup(self) -> list[str]:
        if self._watch is None:
            self._journal.load()
        if not self._journal.entries:
            return []
        with Netlink() as netlink:
            return self._restore(Host(netlink, self._nft))

    def _close(self) -> None:
        try:
            self._take_down()
        finally:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            if self._nft is not None:
                self._nft.close()
                self._nft = None

    def _restore(self, host: Host, entries: Sequence[Entry] | None = None) -> list[str]:
        """Put back ``entries`` (or all of the journal), the latest first; tries all before it raises."""
        lines: list[str] = []
        problems: list[HostError] = []
        for entry in reversed(self._journal.entries if entries is None else entries):
            try:
                line = host.undo(entry)
                self._journal.remove(entry)
            except HostError as error:
                problems.append(error)
                continue
            if line is not None:
                lines.append(line)
            elif entry.kind is not Kind.TABLE:  # a table is either gone or removed by its name
                _log.info("vip.left_alone", kind=entry.kind.value, interface=entry.interface, name=entry.name)
        if problems:
            raise HostError("; ".join(map(str, problems))) from problems[0]
        return lines

    def _refuse_foreign(self, links: Mapping[str, Link], addresses: Sequence[Address]) -> None:
        ours = {(entry.index, entry.name) for entry in self._journal.entries if entry.kind is Kind.ADDRESS}
        refuse_foreign(self._specs, ours, links, addresses)

    def _forget_lost_interfaces(self, links: Mapping[str, Link]) -> None:
        indexes = {link.index for link in links.values()}
        for entry in self._journal.entries:
            # The tables of nftables do not go with an interface.
            if entry.index not in indexes and entry.kind is not Kind.TABLE:
                self._journal.remove(entry)

    def _announce(self) -> None:
        if not self._up:
            return

        def build(addresses: Sequence[IPv4Address], mac: bytes) -> list[bytes]:
            return [arp.announcement(mac, mac_bytes(self._specs[a].group_mac), a) for a in addresses]

        for interface, addresses in self._by_interface().items():
            try:
                arpio.send(interface, partial(build, addresses))
            except HostError as error:  # a link that is down has nobody to tell; present() sees what matters
                _log.warning("vip.announce_failed", interface=interface, error=str(error))

    # The rest runs on the event loop.

    def _rewrites(self, address: IPv4Address) -> bool:
        assert self._watch is not None
        # An answer that the kernel could not give just now is no sign of damage.
        return self._watch.rules(changes.table_name(address)) in (None, changes.ARP_RULES)

    def _is_present(self, address: IPv4Address) -> bool:
        if self._watch is None:
            return False
        index = self._indexes[self._specs[address].interface]
        there = self._watch.has_link(index) and self._watch.has_address(index, address)
        return there and (not self._up or self._rewrites(address))

    def _announce_again(self) -> None:
        if self._thread is not None:
            self._thread.submit(self._announce)

    def _stop_announcing(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _by_interface(self) -> dict[str, list[IPv4Address]]:
        grouped: dict[str, list[IPv4Address]] = {}
        for address, spec in self._specs.items():
            grouped.setdefault(spec.interface, []).append(address)
        return grouped

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="nlbfarm-vip")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _links() -> dict[str, Link]:
    with Netlink() as netlink:
        return netlink.links()


def _links_and_addresses() -> tuple[dict[str, Link], list[Address]]:
    with Netlink() as netlink:
        return netlink.links(), netlink.addresses()
