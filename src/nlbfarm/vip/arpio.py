"""Sends ARP frames and hears the answers, on packet sockets.

Closing a packet socket waits for an RCU grace period (``packet_release`` in net/packet/af_packet.c;
10 ms and more were seen): that never happens on the event loop here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from nlbfarm.errors import HostError
from nlbfarm.vip import arp

__all__ = ["ask", "check_right", "send"]

_ETH_P_ARP = 0x0806  # linux/if_ether.h


def _right_error(error: OSError) -> HostError:
    return HostError(
        f"no right to send and hear ARP ({error.strerror}); run as root or with the capability CAP_NET_RAW"
    )


def _open(interface: str, *, hear: bool) -> tuple[socket.socket, bytes]:
    """Open a packet socket on an interface; return it and the interface's MAC."""
    # Protocol 0 until it is bound: a socket with a protocol hears every interface at once.
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError as error:
        raise _right_error(error) from error
    try:
        sock.setblocking(False)
        sock.bind((interface, _ETH_P_ARP if hear else 0))
        return sock, sock.getsockname()[4]
    except OSError as error:
        sock.close()
        if error.errno in (errno.ENODEV, errno.ENETDOWN):
            raise HostError(f"interface {interface} is missing or down: cannot use ARP on it") from error
        raise HostError(f"cannot use ARP on interface {interface}: {error.strerror}") from error


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def check_right() -> None:
    """Make sure that this process may open packet sockets; blocks for some milliseconds.

    Raises:
        HostError: It may not.
    """
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError as error:
        raise _right_error(error) from error


def send(interface: str, build: Callable[[bytes], Sequence[bytes]]) -> None:
    """Send frames on an interface; blocks for some milliseconds.

    Args:
        interface: Its name.
        build: Given the interface's MAC, returns the frames.

    Raises:
        HostError: The interface is missing or down, or the right is missing.
    """
    sock, mac = _open(interface, hear=False)
    with sock:
        try:
            for frame in build(mac):
                sock.send(frame)
        except OSError as error:
            raise HostError(f"cannot send ARP on interface {interface}: {error.strerror}") from error


async def ask(
    questions: Mapping[str, Callable[[bytes], Sequence[bytes]]],
    hear: Callable[[str, arp.Arp], bool],
    *,
    send_at: Sequence[float],
    until: float,
) -> None:
    """Send questions on several interfaces at once, and hear all ARP there until ``hear`` has enough.

    Args:
        questions: For each interface: given its MAC, returns the frames to send.
        hear: Called with the interface and each packet; returns ``True`` when all is known.
        send_at: Seconds from now at which the questions are sent, the first of them 0.
        until: Seconds after which to stop listening.

    Raises:
        HostError: An interface is missing or down, or the right is missing.
    """
    loop = asyncio.get_running_loop()
    enough = asyncio.Event()

    def readable(interface: str, sock: socket.socket) -> None:
        while True:
            try:
                frame = sock.recv(128)
            except BlockingIOError:
                return
            except OSError:  # the interface went down; whoever lives there does not answer
                loop.remove_reader(sock)
                return
            packet = arp.parse(frame)
            if packet is not None and hear(interface, packet):
                enough.set()

    with ExitStack() as stack:
        ports: list[tuple[socket.socket, Sequence[bytes]]] = []
        # Nobody needs to wait for it, and whoever is cancelled must not.
        stack.callback(lambda: loop.run_in_executor(None, _close, [sock for sock, _ in ports]))
        for interface, build in questions.items():
            sock, mac = _open(interface, hear=True)
            ports.append((sock, build(mac)))
            loop.add_reader(sock, readable, interface, sock)
            stack.callback(loop.remove_reader, sock)

        def transmit() -> None:
            for sock, frames in ports:
                for frame in frames:
                    with contextlib.suppress(OSError):  # a full queue, or the link went down
                        sock.send(frame)

        for delay in send_at:
            if delay > 0:
                timer = loop.call_later(delay, transmit)
                stack.callback(timer.cancel)
            else:
                transmit()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until):
                await enough.wait()
