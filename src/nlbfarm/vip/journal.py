"""What was changed on the host: on disk before it is changed, so that any later process can put it back.

The file is replaced as a whole (temporary file, fsync, rename, fsync of the directory), so that a
reader finds either the state before a change or the one with it, also when the power fails.
It is gone when nothing is left to put back.

It names the boot and the network namespace that it speaks of. After a reboot, or when the namespace
is gone, everything that it lists is gone as well.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from nlbfarm.errors import HostError

__all__ = ["Entry", "Journal", "Kind", "Place"]

_VERSION = 1
_TABLE = re.compile(r"nlbfarm_vip_[0-9_]+")
_SYSCTLS = frozenset({"arp_announce"})
_DAMAGED = """\
the journal {path} is damaged ({why}): what an earlier run changed on this host is not known, and nothing \
was put back. Look for it, put it back where it is there (IFACE is the interface of the virtual IP), and \
remove the file:
  ip address show label '*:nlb'                  ip address del ADDRESS/32 dev IFACE
  nft list tables arp                            nft delete table arp nlbfarm_vip_ADDRESS
  sysctl net.ipv4.conf.IFACE.arp_announce        sysctl -w net.ipv4.conf.IFACE.arp_announce=0
  rm {path}
nlbfarm sets arp_announce to 2; 0 is the value of a host on which nobody has set another"""


class Kind(enum.StrEnum):
    """What can be changed on a host."""

    SYSCTL = "sysctl"
    TABLE = "table"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    Args:
        kind: What was changed.
        interface: Name of the interface at that time, for messages.
        index: The interface's index, which is never given to another one.
        name: The sysctl below ``net.ipv4.conf.<interface>``, the table of the ``arp`` family, or the
            address with its prefix length.
        old: The value before; empty where there was nothing.
        new: The value as we left it.
    """

    kind: Kind
    interface: str
    index: int
    name: str
    old: str = ""
    new: str = ""

    @classmethod
    def read(cls, data: Any) -> Entry:
        """Build an entry from JSON.

        Raises:
            ValueError: It is not one that this version writes. What a journal names is changed with
                all rights of the node, so nothing unexpected may pass.
        """
        if not isinstance(data, dict) or set(data) != {"kind", "interface", "index", "name", "old", "new"}:
            raise ValueError("an entry has other fields")
        if type(data["index"]) is not int or not all(
            isinstance(data[key], str) for key in ("kind", "interface", "name", "old", "new")
        ):
            raise ValueError("an entry has values of the wrong type")
        entry = cls(**{**data, "kind": Kind(data["kind"])})
        match entry.kind:
            case Kind.SYSCTL:
                known = entry.name in _SYSCTLS and entry.old.isdecimal() and entry.new.isdecimal()
            case Kind.TABLE:
                known = _TABLE.fullmatch(entry.name) is not None
            case Kind.ADDRESS:
                known = IPv4Interface(entry.name).network.prefixlen == 32
        if not known:
            raise ValueError(f"an entry names {entry.name!r}")
        return entry


@dataclass(frozen=True, slots=True)
class Place:
    """The boot and network namespace that changes belong to.

    Args:
        boot: ``/proc/sys/kernel/random/boot_id``.
        namespace: Device and inode of the network namespace (namespaces(7)).
    """

    boot: str
    namespace: str

    @classmethod
    def here(cls) -> Place:
        """Return where this process is."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return cls(boot, _namespace(Path("/proc/thread-self/ns/net")))


def _namespace(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}"


def _namespace_holder(namespace: str) -> str | None:
    """Return what keeps a network namespace alive, a process or a name of ``ip netns``, if anything does."""
    for path in (*Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")):
        with contextlib.suppress(OSError):
            if _namespace(path) == namespace:
                named = path.parent.name == "netns"
                return f"ip netns exec {path.name}" if named else f"process {path.parts[2]}"
    return None


class Journal:
    """The journal file of one farm on one host. Its methods block.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.new")
        self._place: Place | None = None
        self._entries: list[Entry] = []

    @property
    def entries(self) -> Sequence[Entry]:
        """All changes not yet put back, oldest first."""
        return tuple(self._entries)

    def load(self) -> None:
        """Read the file; entries of an earlier boot or a namespace that is gone are dropped with the file.

        Raises:
            HostError: It cannot be read, is damaged (the file stays: what it listed may still be on the
                host), was written by another version, or speaks of another namespace that still exists.
        """
        self._place = Place.here()
        self._entries = []
        with contextlib.suppress(OSError):  # of a process that was killed while it wrote
            self._temporary.unlink()
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"cannot read the journal {self._path}: {error.strerror}") from error
        place, entries = self._parse(raw)
        if place.boot != self._place.boot:
            self._write([])
        elif place.namespace != self._place.namespace:
            holder = _namespace_holder(place.namespace)
            if holder is not None:
                raise HostError(
                    f"the journal {self._path} lists changes in another network namespace ({holder}); "
                    f"run 'nlbfarm-node cleanup' there first, or use another --runtime-dir here"
                )
            self._write([])
        else:
            self._entries = entries

    def _parse(self, raw: bytes) -> tuple[Place, list[Entry]]:
        try:
            data = json.loads(raw)
            version = data["version"]
            if version == _VERSION:
                entries = [Entry.read(item) for item in data["entries"]]
                return Place(str(data["boot"]), str(data["namespace"])), entries
        except (ValueError, TypeError, KeyError) as error:
            raise HostError(_DAMAGED.format(path=self._path, why=error)) from error
        raise HostError(
            f"the journal {self._path} was written by another version of nlbfarm (format {version}, this one "
            f"knows {_VERSION}); run 'nlbfarm-node cleanup' of that version, or restart the host"
        )

    def add(self, entry: Entry) -> None:
        """Write down a change that is about to be made. One that is there already is not doubled.

        Raises:
            HostError: It cannot be written; the change must not be made.
        """
        if entry not in self._entries:
            self._commit([*self._entries, entry])

    def remove(self, entry: Entry) -> None:
        """Strike out a change that was put back, or was never made.

        Raises:
            HostError: It cannot be written. Harmless: putting back twice does nothing the second time.
        """
        if entry in self._entries:
            self._commit([other for other in self._entries if other != entry])

    def _commit(self, entries: list[Entry]) -> None:
        self._write(entries)
        self._entries = entries

    def _write(self, entries: Sequence[Entry]) -> None:
        place = self._place or Place.here()
        try:
            if not entries:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            text = json.dumps(
                {
                    "version": _VERSION,
                    "boot": place.boot,
                    "namespace": place.namespace,
                    "entries": [asdict(entry) for entry in entries],
                },
                indent=1,
            )
            with _replaced(self._temporary) as descriptor:
                os.write(descriptor, text.encode())
                os.fsync(descriptor)
            self._temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise HostError(f"cannot write the journal {self._path}: {error.strerror}") from error


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[int]:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
