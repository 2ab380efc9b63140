"""A node with VIPs, clients, and real connections between them, for tests of what becomes of them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

import pytest
from tests.netns.support import Namespace, cable

from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Protocol, Rule, Vip

VIPS: dict[int, IPAddress] = {4: IPv4Address("192.0.2.100"), 6: IPv6Address("2001:db8::64")}
NODES = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENTS = {4: ("192.0.2.50", "192.0.2.51"), 6: ("2001:db8::50", "2001:db8::51")}
LENGTHS = {4: 24, 6: 64}
UNANSWERED = 20_000  # below the ports that the kernel chooses
POLICY = FilterPolicy(
    "flows",
    tuple(Vip(vip, "eth0") for vip in VIPS.values()),
    (Group("web", 0x5EED), Group("api", 7)),
    (
        Rule("web", "web", VIPS[4], Protocol.TCP, (80,)),
        Rule("api", "api", VIPS[4], Protocol.TCP, (443,), Affinity.CLIENT),
        Rule("dns", "api", VIPS[4], Protocol.UDP, (53,), Affinity.CLIENT),
        Rule("web6", "web", VIPS[6], Protocol.TCP, (80,)),
        Rule("api6", "api", VIPS[6], Protocol.TCP, (443,), Affinity.NETWORK),
    ),
)
# What the node answers to these ports never reaches the client: its connections stay half open.
DEAF = f"""
table inet deaf {{
    chain input {{
        type filter hook input priority 0; policy accept;
        tcp dport {UNANSWERED}-{UNANSWERED + 999} drop
    }}
}}
"""


@dataclass
class Connection:
    """Both ends of one, as far as there are two."""

    mine: socket.socket
    theirs: socket.socket | None
    port: int

    @property
    def version(self) -> int:
        """Its IP version."""
        return 4 if self.mine.family == socket.AF_INET else 6

    @property
    def place(self) -> tuple[str, int]:
        """Its group and bucket, by the hash rule."""
        address, port = self.mine.getsockname()[:2]
        [rule] = [
            rule for rule in POLICY.rules if rule.vip.version == self.version and rule.ports == (self.port,)
        ]
        key = flow_key(rule.affinity, ip_address(address), port)
        return rule.group, bucket_of(key, POLICY.group(rule.group).seed)

    def talk(self) -> None:
        """Send something each way."""
        assert self.theirs is not None
        for one, other in ((self.mine, self.theirs), (self.theirs, self.mine)):
            one.sendall(b"hello")
            assert other.recv(5) == b"hello"

    def reset(self) -> None:
        """Let the client give up (RST)."""
        self.mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.mine.close()

    def close(self, first: Literal["mine", "theirs"]) -> None:
        """Let both ends close; who closes first waits in TIME_WAIT."""
        assert self.theirs is not None
        ends = [self.mine, self.theirs] if first == "mine" else [self.theirs, self.mine]
        ends[0].close()
        assert ends[1].recv(1) == b""
        ends[1].close()


class Network:
    """A node with the VIPs, listening on their ports, and clients."""

    def __init__(self) -> None:
        self.node, self.outside = Namespace(), Namespace()
        cable(self.node, "eth0", self.outside, "eth0")
        for version in (4, 6):
            nodad = ["nodad"] if version == 6 else []
            for namespace, addresses in ((self.node, (NODES[version],)), (self.outside, CLIENTS[version])):
                for address in addresses:
                    with_length = f"{address}/{LENGTHS[version]}"
                    namespace.run("ip", "address", "add", with_length, "dev", "eth0", *nodad)
            vip = VIPS[version]
            self.node.run("ip", "address", "add", f"{vip}/{vip.max_prefixlen}", "dev", "eth0", *nodad)
        self.outside.run("nft", "-f", "-", stdin=DEAF)
        self._half_open = 0
        self._sockets: list[socket.socket] = []
        self.listeners = {}
        with self.node.entered():
            for port in (80, 443):
                self.listeners[port] = self._keep(socket.socket(socket.AF_INET6))
                self.listeners[port].bind(("::", port))
                self.listeners[port].listen(256)

    def _keep(self, opened: socket.socket) -> socket.socket:
        self._sockets.append(opened)
        opened.settimeout(5)
        return opened

    def _client(self, version: int, client: int, port: int = 0) -> socket.socket:
        with self.outside.entered():
            mine = self._keep(socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6))
        mine.bind((CLIENTS[version][client], port))
        return mine

    def connect(self, version: int, port: int, client: int = 0) -> Connection:
        """Open a connection."""
        mine = self._client(version, client)
        mine.connect((str(VIPS[version]), port))
        theirs, _ = self.listeners[port].accept()
        return Connection(mine, self._keep(theirs), port)

    def begin(self, version: int, port: int) -> Connection:
        """Send a SYN, and hear nothing of what comes back."""
        mine = self._client(version, 0, UNANSWERED + self._half_open)
        self._half_open += 1
        mine.setblocking(False)
        with pytest.raises(BlockingIOError):
            mine.connect((str(VIPS[version]), port))
        return Connection(mine, None, port)

    def close(self) -> None:
        for opened in self._sockets:
            opened.close()
        self.node.close()
        self.outside.close()
