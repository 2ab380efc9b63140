"""Simulated clients: they open connections, keep talking for a while, and notice when one breaks.

A client is at no fixed place: its SYN goes to every node, as on a farm's network, and whoever accepts
new flows of its bucket serves it from then on. It talks all the time, so a connection breaks the
moment another node accepts every packet of its bucket: that node's stack answers with a RST.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlbfarm.core.buckets import BUCKETS, Bitmap, bits

if TYPE_CHECKING:
    from nlbfarm.testing.hosts import SimulatedHost
    from nlbfarm.testing.world import World

__all__ = ["Clients", "Connection"]

PATIENCE_S = (1.0, 2.0, 4.0)
"""When a SYN that nobody answers is sent again (RFC 6298, section 2: doubling from one second)."""

FORGOTTEN_S = 3.0
"""How long a node's table keeps a broken flow at most: until the application's next packet is refused."""


@dataclass(eq=False, slots=True)
class Connection:
    """One established connection, and the boot of the host whose flow table it is in."""

    group: int
    bucket: int
    host: SimulatedHost
    boot: int
    broken: bool = False


class Clients:
    """Opens connections at random.

    Args:
        farm: Whom they talk to.
        per_second: New connections a second; 0 for none.
        life_s: Mean life of a connection; each gets one between none and three times as long.
    """

    def __init__(self, farm: World, per_second: float, life_s: float) -> None:
        self.opened = self.retransmits = self.failed = self.broken = 0
        self._farm = farm
        self._random = farm.random
        self._gap = 1 / per_second if per_second else 0.0
        self._life_s = life_s
        self._open: dict[tuple[int, int], list[Connection]] = {}
        if per_second:
            farm.at(self._random.random() * self._gap, self._arrive)

    def _arrive(self) -> None:
        rng = self._random
        groups = len(self._farm.groups)
        group = int(rng.random() * groups) if groups > 1 else 0
        self._syn(group, int(rng.random() * BUCKETS), 0)
        self._farm.at(self._farm.now + 2 * rng.random() * self._gap, self._arrive)

    def _syn(self, group: int, bucket: int, attempt: int) -> None:
        now = self._farm.now
        for host in self._farm.hosts.values():
            if host.accepts(group, now) >> bucket & 1:
                self._establish(Connection(group, bucket, host, host.boot))
                return
        if attempt == len(PATIENCE_S):
            self.failed += 1
            return
        self.retransmits += 1
        self._farm.at(now + PATIENCE_S[attempt], self._syn, group, bucket, attempt + 1)

    def _establish(self, connection: Connection) -> None:
        self.opened += 1
        connection.host.flow_begins(connection.group, connection.bucket)
        self._open.setdefault((connection.group, connection.bucket), []).append(connection)
        rng = self._random
        life = self._life_s * (3 * rng.random() if rng.random() < 0.5 else rng.random())
        self._farm.at(self._farm.now + life, self._close, connection)

    def _close(self, connection: Connection) -> None:
        """The client is done; what breaks later is none of its business."""
        if not connection.broken:
            self._silence(connection)
            self._forget(connection)

    def _silence(self, connection: Connection) -> None:
        self._open[connection.group, connection.bucket].remove(connection)
        host = connection.host
        if host.boot == connection.boot:
            host.flow_ends(connection.group, connection.bucket)

    def _forget(self, connection: Connection) -> None:
        host = connection.host
        if host.boot == connection.boot:
            host.flow_forgotten(connection.group, connection.bucket)

    def cut_off(self, host: SimulatedHost, group: int, buckets: Bitmap) -> None:
        """Break the connections of ``host`` in ``buckets``; its flow table keeps them for a while."""
        for bucket in bits(buckets):
            for connection in self._open.get((group, bucket), [])[:]:
                if connection.host is host:
                    self._break(connection)

    def lost(self, host: SimulatedHost) -> None:
        """Break every connection of a machine that is gone."""
        for connections in self._open.values():
            for connection in connections[:]:
                if connection.host is host:
                    self._break(connection)

    def _break(self, connection: Connection) -> None:
        connection.broken = True
        self.broken += 1
        self._silence(connection)
        self._farm.at(self._farm.now + FORGOTTEN_S * self._random.random(), self._forget, connection)
