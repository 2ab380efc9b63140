"""pydivert, and all that differs between its two engines: WinDivert on Windows, eBPF at tc on Linux.

======================= ================================== ==========================================
what                    Windows                            Linux (for tests)
======================= ================================== ==========================================
interfaces              ``ifIdx`` in the filter            the handle is bound to them
fragments               reassembled before the filter      each by itself, at tc (``FRAGMENTS``)
packets at a time       one: pydivert 4.0 ends a larger    64
                        batch by cancelling a read, and
                        may lose a packet by it
process killed          its handles are gone at once, and  its programs drop for 3 s, then they pass
                        everything passes                  everything
process stopped         its packets wait, then are         as if killed
                        dropped
queue full              dropped                            **passed** (``ringbuf_full``)
checksums               left alone                         see ``keep_checksums``
======================= ================================== ==========================================
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nlbfarm.backends.windivert.filters import Target
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError
from nlbfarm.interfaces import Usability

__all__ = [
    "GUARD_PRIORITY",
    "LOOP_PRIORITY",
    "Stranger",
    "drop_handle",
    "explain",
    "flow_handle",
    "interface_indexes",
    "keep_checksums",
    "load",
    "loop_handle",
    "missing_right",
    "require_no_rival",
    "strangers",
    "targets",
    "usability",
]

LOOP_PRIORITY = -29_998
"""Below every handle that others are likely to have: what they put back is judged like the rest."""

GUARD_PRIORITY = -29_999
"""Below the loop, so that even what a loop puts back that wakes up late is dropped."""

WINDOWS = sys.platform == "win32"

BATCH = 1 if WINDOWS else 64
"""Packets taken at a time."""

IDLE_S = None if WINDOWS else 0.1
"""Seconds after which a wait for packets returns without one; ``None``: never (nothing is cancelled then)."""

_QUEUE_MS = 500
"""Packets that waited longer for the loop are dropped; a change of states waits for those before it."""

_RING_BYTES = 32 << 20
_ORDINARY = frozenset((0x45, *range(0x60, 0x70)))  # first bytes of IP headers without IPv4 options
_INSTALL = "install it with: pip install nlbfarm[windivert]"
_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN, _CAP_BPF = 12, 13, 21, 39  # linux/capability.h

# winerror.h; what WinDivertOpen may say is in the WinDivert documentation, "WinDivertOpen"
_WINDOWS_ERRORS = {
    2: "the driver file WinDivert64.sys is not beside WinDivert64.dll: an anti-virus product may have "
    "removed it; make an exception for the folder of the package pydivert and install it again",
    5: "no right to open the driver: run the node as Administrator or as a service of LocalSystem",
    87: "the driver does not take this filter: another version of WinDivert may be loaded; see "
    "'sc query WinDivert'",
    577: "Windows does not accept the driver's signature: install the updates of Windows, or the original "
    "package pydivert",
    654: "another version of the WinDivert driver is loaded: end the program that uses it, then "
    "'sc stop WinDivert'",
    1058: "the driver's service is disabled: 'sc config WinDivert start= demand'",
    1060: "the driver's service is not installed, and may not be: an anti-virus product may forbid it",
    1275: "the driver was blocked by an anti-virus product or a policy (memory integrity, WDAC): allow "
    "WinDivert64.sys there, or use another host",
    1753: "the Base Filtering Engine is not running: 'sc start BFE'",
}


@dataclass(frozen=True, slots=True)
class Stranger:
    """A divert handle of another program.

    Args:
        pid: Whose it is.
        priority: Its priority; the higher one sees a packet first.
    """

    pid: int
    priority: int

    def __str__(self) -> str:
        try:
            name = psutil.Process(self.pid).name()
        except (psutil.Error, OSError):
            name = "a process that has ended"
        return f"{name} (pid {self.pid}, priority {self.priority})"


def load() -> Any:
    """Import pydivert.

    Raises:
        HostError: It is not installed, or not for this platform, and what to do.
    """
    try:
        pydivert: Any = importlib.import_module("pydivert")
    except ImportError as error:
        raise HostError(
            f"windivert: the package pydivert cannot be imported ({error}); {_INSTALL}"
        ) from error
    except OSError as error:  # WinDivert64.dll is loaded on import
        raise HostError(
            f"windivert: WinDivert64.dll cannot be loaded ({error}): an anti-virus product may have removed "
            f"it; make an exception for the folder of the package pydivert, then {_INSTALL}"
        ) from error
    if not WINDOWS and not pydivert.Divert.is_registered():
        raise HostError(
            "windivert: the eBPF library of pydivert cannot be loaded here (it is for Linux on x86-64 and "
            f"arm64); {_INSTALL}"
        )
    return pydivert


def loop_handle(expression: str, interfaces: Sequence[str]) -> Any:
    """Open the handle of the loop.

    Args:
        expression: The filter.
        interfaces: Names of the interfaces; Windows has them in the filter.

    Raises:
        HostError: It cannot be opened, and why.
    """
    handle = _open(expression, interfaces, LOOP_PRIORITY, drop=False)
    handle.set_param(load().Param.QUEUE_TIME, _QUEUE_MS)
    return handle


def drop_handle(expression: str, interfaces: Sequence[str]) -> Any:
    """Open a handle that drops what matches; the arguments and errors are those of ``loop_handle``."""
    return _open(expression, interfaces, GUARD_PRIORITY, drop=True)


def flow_handle(expression: str) -> Any:
    """Open a handle on the flow layer, which only listens; the errors are those of ``loop_handle``."""
    pydivert = load()
    flags = pydivert.Flag.SNIFF | pydivert.Flag.RECV_ONLY
    try:
        return pydivert.Divert(expression, pydivert.Layer.FLOW, LOOP_PRIORITY, flags).open()
    except (OSError, RuntimeError) as error:
        raise HostError(f"windivert: {explain(error)}") from error


def _open(expression: str, interfaces: Sequence[str], priority: int, *, drop: bool) -> Any:
    pydivert = load()
    flags = pydivert.Flag.DROP if drop else pydivert.Flag.DEFAULT
    options: dict[str, object] = {}
    if not WINDOWS:
        flags |= pydivert.Flag.FRAGMENTS
        options = {"interfaces": list(interfaces), "ring_bytes": _RING_BYTES}
    try:
        return pydivert.Divert(expression, pydivert.Layer.NETWORK, priority, flags, **options).open()
    except (OSError, RuntimeError, ImportError) as error:  # NotImplementedError is a RuntimeError
        raise HostError(f"windivert: {explain(error)}") from error


def _tick_ns() -> float:
    if sys.platform == "win32":
        frequency = ctypes.c_int64()
        ctypes.windll.kernel32.QueryPerformanceFrequency(ctypes.byref(frequency))
        return 1e9 / frequency.value
    return 1


TICK_NS = _tick_ns()
"""Nanoseconds of a tick of ``Packet.timestamp``, which counts as ``shared.clock`` does."""


def keep_checksums(packet: Any) -> None:
    """Have a packet put back with the checksums it came with, wrong ones included.

    The Linux engine computes every checksum that it found wrong, and so would pass damaged data off as good.
    Only one that the kernel left to be completed (the sender is on this host: CHECKSUM_PARTIAL) has to be; it
    is known by its value, the sum of the pseudo header. Those of ICMP the engine computes in any case.

    Args:
        packet: A ``pydivert.Packet`` as it was received.

    Source: linux/skbuff.h, "Checksumming of received packets by device"; RFC 1071.
    """
    if WINDOWS:
        return
    address, data = packet.wd_addr, packet.raw
    address.IPChecksum = 1
    if data[0] == 0x45:
        protocol, start, total, ends = data[9], 20, data[2] << 8 | data[3], data[12:20]
    else:
        protocol, start, total, ends = data[6], 40, (data[4] << 8 | data[5]) + 40, data[8:40]
    known, place = (address.TCPChecksum, start + 16) if protocol == 6 else (address.UDPChecksum, start + 6)
    if not known and protocol in (6, 17) and data[0] in _ORDINARY and len(data) >= place + 2:
        pseudo = (int.from_bytes(ends, "big") + protocol + total - start) % 0xFFFF
        if (data[place] << 8 | data[place + 1]) % 0xFFFF == pseudo:
            return
    address.TCPChecksum = address.UDPChecksum = 1


def explain(error: BaseException) -> str:
    """Say for an administrator what an error of pydivert means and what to do.

    Args:
        error: What opening a handle raised.
    """
    number = getattr(error, "winerror", None)
    if number is not None:
        known = _WINDOWS_ERRORS.get(number)
        return f"the driver cannot be opened: {known or error} (error {number})"
    if isinstance(error, OSError):
        if error.errno in (errno.EPERM, errno.EACCES):
            return (
                "no right to load eBPF programs: it needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN "
                "and CAP_NET_RAW, of the host itself (not of a user namespace)"
            )
        if error.errno == errno.ENODEV:
            return "an interface of a VIP is not there; see 'ip link'"
        if error.errno == errno.ENOMEM:
            return "not enough memory that may be locked for the packet buffer: raise LimitMEMLOCK"
    return f"the handle cannot be opened: {error}"


def missing_right() -> str | None:
    """Say which right this process lacks for divert handles, ``None`` if none is known to be missing."""
    if sys.platform == "win32":
        if not ctypes.windll.shell32.IsUserAnAdmin():
            return _WINDOWS_ERRORS[5]
        return None
    try:
        status = Path("/proc/self/status").read_text()
        effective = int(status.partition("CapEff:")[2].split()[0], 16)
        whole_host = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    except (OSError, IndexError, ValueError):
        return None
    held = {
        number
        for number in (_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN, _CAP_BPF)
        if effective >> number & 1
    }
    may_load = held & {_CAP_BPF, _CAP_SYS_ADMIN}
    if not (may_load and {_CAP_NET_ADMIN, _CAP_NET_RAW} <= held and whole_host):
        return explain(PermissionError(errno.EPERM, "capabilities"))
    return None


def usability() -> Usability:
    """Say whether divert handles can be had here, without opening one."""
    try:
        load()
    except HostError as error:
        return Usability(False, str(error).removeprefix("windivert: "))
    if lacking := missing_right():
        return Usability(False, lacking)
    if WINDOWS:
        return Usability(
            True, "WinDivert, through pydivert; whether an anti-virus product blocks its driver shows on open"
        )
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return Usability(
            False, "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF), which pydivert needs on Linux"
        )
    return Usability(
        True,
        "pydivert's eBPF engine, for tests: experimental, and it lets packets pass when its buffer is full",
    )


def strangers(ours: Iterable[int]) -> list[Stranger]:
    """Return the divert handles for packets that other processes have open, as far as the engine knows.

    Args:
        ours: Ids of processes that are no strangers.

    Linux knows of them where a BPF file system is mounted.
    """
    pydivert, known = load(), frozenset(ours)
    found: list[Stranger] = []
    with contextlib.suppress(OSError, RuntimeError):
        flags = pydivert.Flag.SNIFF | pydivert.Flag.RECV_ONLY
        with pydivert.Divert("event == OPEN", pydivert.Layer.REFLECT, 0, flags) as reflect:
            while True:
                event = reflect.recv(timeout=0.02).reflect
                if (
                    event is not None
                    and event.Layer == pydivert.Layer.NETWORK
                    and event.ProcessId not in known
                ):
                    found.append(Stranger(event.ProcessId, event.Priority))
    return found


def require_no_rival(ours: Iterable[int]) -> list[Stranger]:
    """Make sure that nobody's packets pass by the loop, and return the other handles there are.

    Of two handles with one priority each passes by what the other has put back.

    Args:
        ours: Ids of processes that are no strangers.

    Raises:
        HostError: Another program has a handle of our priority.
    """
    found = strangers(ours)
    for stranger in found:
        if stranger.priority in (LOOP_PRIORITY, GUARD_PRIORITY):
            raise HostError(
                f"windivert: {stranger} has a divert handle with the priority of ours, so packets could pass "
                "by this filter: end it, or give it another priority"
            )
    return found


def interface_indexes(policy: FilterPolicy) -> dict[str, int]:
    """Return the index of each VIP's interface, by name.

    Raises:
        HostError: There is no interface of that name.
    """
    indexes: dict[str, int] = {}
    for vip in policy.vips:
        try:
            indexes[vip.interface] = _index(vip.interface)
        except OSError:
            there = ", ".join(sorted(psutil.net_if_addrs()))
            raise HostError(
                f"windivert: the VIP {vip.address} is on the interface {vip.interface!r}, which this host "
                f"does not have (there are: {there})"
            ) from None
    return indexes


def targets(policy: FilterPolicy, indexes: dict[str, int]) -> list[Target]:
    """Return what the filters are rendered from."""
    return [Target(vip.address, indexes[vip.interface] if WINDOWS else None) for vip in policy.vips]


def _index(name: str) -> int:
    if sys.platform == "win32":
        # Administrators know the alias ("Ethernet 2"); if_nametoindex knows another name ("ethernet_32769").
        luid, index = ctypes.c_uint64(), ctypes.c_uint32()
        helper = ctypes.windll.iphlpapi
        if helper.ConvertInterfaceAliasToLuid(ctypes.c_wchar_p(name), ctypes.byref(luid)) == 0 and (
            helper.ConvertInterfaceLuidToIndex(ctypes.byref(luid), ctypes.byref(index)) == 0
        ):
            return index.value
    return socket.if_nametoindex(name)
