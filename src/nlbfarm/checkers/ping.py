"""Does an address answer ICMP echo?

A few lines of RFC 792 and RFC 4443 instead of a package: the kernel does what is hard (addresses, IPv6
checksums, and with its own kind of socket even the matching of answers).
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import struct
import sys
import time
from typing import Any

from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import many, seconds
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["PingChecker"]

_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}  # RFC 792, RFC 4443 section 4
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_LARGEST = 2048
_PAUSE = 0.02  # seconds after an error: one that stays must not keep the event loop busy
_BIND_TO_DEVICE = 25  # asm-generic/socket.h; Python has the name only on some builds


class PingChecker(Checker):
    """Sends ICMP echo requests: healthy with the first answer.

    The requests are spread over the timeout, so that a burst of loss does not take them all.

    Args:
        address: Whom to ask.
        interface: Ask through this interface, whatever the routes say; empty: as they say.
        count: How many requests, unless one is answered before.
        timeout: Seconds after which a look has failed.
    """

    def __init__(
        self, address: IPAddress, *, interface: str = "", count: int = 3, timeout: float = 5.0
    ) -> None:
        self._address = address
        self._interface = interface
        self._count = count
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> PingChecker:
        """Return the checker for an entry of type ``ping``."""
        return cls(
            config.address,
            interface=config.interface or "",
            count=config.count,
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        where = f"{self._address} through {self._interface}" if self._interface else str(self._address)
        try:
            echo = _Echo(self._address, self._interface)
        except OSError as error:
            return CheckResult(False, f"cannot ask {where}: {_why(error, self._interface)}")
        try:
            async with asyncio.timeout(self._timeout):
                for sent in range(1, self._count + 1):
                    echo.ask()
                    took = await echo.answered(self._timeout / self._count if sent < self._count else None)
                    if took is not None:
                        after = f" to request {sent} of {self._count}" if sent > 1 else ""
                        return CheckResult(True, f"answer from {where}{after} within {took * 1e3:.1f} ms")
        except TimeoutError:
            pass
        finally:
            echo.close()
        asked = f"{many(self._count, 'echo request')}, {seconds(self._timeout)}"
        why = f": {_why(echo.error, self._interface)}" if echo.error is not None else ""
        return CheckResult(False, f"no answer from {where} ({asked}){why}")


class _Echo:
    """A socket that asks one address and hears its answers.

    Raises:
        HostError: This host lets nobody, or not this user, send echo requests.
        OSError: There is no way to the address.
    """

    def __init__(self, address: IPAddress, interface: str) -> None:
        self._version = address.version
        # What belongs to this look alone; a raw socket hears the answers to everybody on the host.
        self._token = secrets.token_bytes(16)
        self._identifier = int.from_bytes(self._token[:2])
        self._sent_at = 0.0
        self._sequence = 0
        self.error: OSError | None = None
        """What the host, or a router, said last."""
        self._socket, self._raw = _open(self._version)
        try:
            if interface:
                self._socket.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, interface.encode() + b"\0")
            self._socket.setblocking(False)
            self._socket.connect((str(address), 0))
        except OSError:
            self._socket.close()
            raise

    def ask(self) -> None:
        """Send a request; one that cannot be sent is a lost one."""
        self._sequence += 1
        data = self._message(0)
        if self._raw and self._version == 4:  # the kernel adds all other checksums
            data = self._message(_checksum(data))
        self._sent_at = time.monotonic()
        try:
            self._socket.send(data)
        except OSError as error:
            self.error = error

    def _message(self, checksum: int) -> bytes:
        header = _HEADER.pack(_REQUEST[self._version], 0, checksum, self._identifier, self._sequence)
        return header + self._token

    async def answered(self, patience: float | None) -> float | None:
        """Wait for an answer to any request; return how long the newest was under way, ``None`` without one.

        Args:
            patience: Seconds, ``None`` for as long as the caller lets it.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        data = await loop.sock_recv(self._socket, _LARGEST)
                    except OSError as error:  # about a request; the next one may be answered all the same
                        self.error = error
                        await asyncio.sleep(_PAUSE)
                        continue
                    if self._is_answer(data):
                        return time.monotonic() - self._sent_at
        except TimeoutError:
            return None

    def _is_answer(self, data: bytes) -> bool:
        if self._raw and self._version == 4:  # with the IP header, as long as it says in words of four bytes
            data = data[(data[0] & 0x0F) * 4 :] if data else data
        return (
            len(data) == _HEADER.size + len(self._token)
            and data[0] == _REPLY[self._version]
            and data.endswith(self._token)
        )

    def close(self) -> None:
        self._socket.close()


def _open(version: int) -> tuple[socket.socket, bool]:
    """Return a socket for echo requests, and whether it is a raw one.

    Linux has a kind of its own for them (icmp(7)), for the groups in ``net.ipv4.ping_group_range``, root not
    excepted; a raw one is for ``CAP_NET_RAW``.
    """
    if not sys.platform.startswith("linux"):
        raise HostError(
            'the checker type "ping" works on Linux only; here, let a "script" run ping, or ask a port of '
            'that machine with "tcp"'
        )
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return socket.socket(_FAMILY[version], kind, _PROTOCOL[version]), kind == socket.SOCK_RAW
        except PermissionError:
            continue
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                raise HostError(f"this host has no IPv{version}: no echo request can be sent") from error
            if error.errno != errno.EPROTONOSUPPORT:
                raise
    raise HostError(
        "this user may not send echo requests (ping): give nlbfarm CAP_NET_RAW, or let its group in with "
        f"sysctl net.ipv4.ping_group_range='{os.getgid()} {os.getgid()}'"
    )


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _why(error: OSError, interface: str) -> str:
    match error.errno:
        case errno.ENODEV:
            return f"this host has no interface {interface}"
        case errno.EPERM | errno.EACCES:
            return "the host refuses it (a firewall, or the right to choose the interface)"
    return os.strerror(error.errno) if error.errno else str(error)
