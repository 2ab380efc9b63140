"""Finds what is plugged in: the implementations of this package, and those of a vendor's.

A vendor's package names its classes in an entry-point group; installing it is enough::

    [project.entry-points."nlbfarm.backends"]
    acme = "acme_nlbfarm.backend:AcmeBackend"

The configuration then says ``backend = "acme"``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from nlbfarm.errors import NlbfarmError, PluginError
from nlbfarm.interfaces import Checker, FilterBackend, Heartbeat, Service, VIPManager

__all__ = ["BUILT_IN", "Kind", "Plugin", "available", "load", "make"]


T = TypeVar("T")


class Kind(enum.Enum):
    """What can be plugged in; the value is the entry-point group."""

    BACKEND = "nlbfarm.backends"
    HEARTBEAT = "nlbfarm.heartbeats"
    CHECKER = "nlbfarm.checkers"
    VIP = "nlbfarm.vips"
    SERVICE = "nlbfarm.services"


INTERFACE: Mapping[Kind, type] = {
    Kind.BACKEND: FilterBackend,
    Kind.HEARTBEAT: Heartbeat,
    Kind.CHECKER: Checker,
    Kind.VIP: VIPManager,
    Kind.SERVICE: Service,
}

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    Kind.BACKEND: {
        "memory": "nlbfarm.backends.memory:MemoryBackend",
        "nfqueue": "nlbfarm.backends.nfqueue:NfqueueBackend",
        "nftables": "nlbfarm.backends.nftables:NftablesBackend",
        "windivert": "nlbfarm.backends.windivert:WinDivertBackend",
    },
    Kind.HEARTBEAT: {"udp": "nlbfarm.heartbeat.udp:UdpHeartbeat"},
    Kind.CHECKER: {
        "certificate": "nlbfarm.checkers.certificate:CertificateChecker",
        "http": "nlbfarm.checkers.http:HttpChecker",
        "interface": "nlbfarm.checkers.interface:InterfaceChecker",
        "ip": "nlbfarm.checkers.ip:IpChecker",
        "module": "nlbfarm.checkers.module:ModuleChecker",
        "ping": "nlbfarm.checkers.ping:PingChecker",
        "process": "nlbfarm.checkers.process:ProcessChecker",
        "resources": "nlbfarm.checkers.resources:ResourcesChecker",
        "script": "nlbfarm.checkers.script:ScriptChecker",
        "tcp": "nlbfarm.checkers.tcp:TcpChecker",
    },
    Kind.VIP: {
        "linux": "nlbfarm.vip.linux:LinuxVIPManager",
        "memory": "nlbfarm.vip.memory:MemoryVIPManager",
    },
    Kind.SERVICE: {
        "command": "nlbfarm.services.command:CommandService",
        "scripts": "nlbfarm.services.scripts:ScriptsService",
        "systemd": "nlbfarm.services.systemd:SystemdService",
        "windows": "nlbfarm.services.windows:WindowsService",
    },
}
"""Ours; also entry points, but a frozen program has no package metadata to find those in."""

_OURS = "nlbfarm"


@dataclass(frozen=True)
class Plugin:
    """One implementation that was found.

    Args:
        kind: What it implements.
        name: Its name in the configuration.
        target: ``"module:attribute"``.
        origin: The distribution that brings it.
    """

    kind: Kind
    name: str
    target: str
    origin: str

    def load(self) -> type:
        """Import and return the class.

        Raises:
            PluginError: It cannot be imported, or is no class of its kind.
        """
        where = f'plug-in "{self.name}" ({self.target}, from {self.origin})'
        module, _, attribute = self.target.partition(":")
        try:
            found: object = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise PluginError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
        interface = INTERFACE[self.kind]
        if not isinstance(found, type) or not issubclass(found, interface):
            raise PluginError(
                f"{where} is not a class that implements nlbfarm.interfaces.{interface.__name__}"
            )
        return found


def available(kind: Kind) -> Mapping[str, Plugin]:
    """Return every implementation of ``kind`` by name, ours first; imports none.

    Raises:
        PluginError: Two packages bring one name, or one of them takes a name of ours.
    """
    found = {name: Plugin(kind, name, target, _OURS) for name, target in BUILT_IN[kind].items()}
    for point in sorted(entry_points(group=kind.value), key=lambda point: point.name):
        origin = _origin(point)
        if origin == _OURS:
            continue
        other = found.get(point.name)
        if other is not None and (other.target, other.origin) != (point.value, origin):
            raise PluginError(
                f'two packages bring "{point.name}" for {kind.value}: {other.origin} and {origin}; '
                "uninstall one of them"
            )
        found[point.name] = Plugin(kind, point.name, point.value, origin)
    return found


def load(kind: Kind, name: str, interface: type[T]) -> type[T]:
    """Import and return the class called ``name``.

    Args:
        kind: What it implements.
        name: Its name in the configuration.
        interface: The class of ``nlbfarm.interfaces`` that ``kind`` stands for.

    Raises:
        PluginError: There is none of this name, it cannot be imported, or it is no ``interface``.
    """
    found = available(kind)
    if name not in found:
        listed = ", ".join(found) or "none"
        raise PluginError(f'nothing called "{name}" is installed for {kind.value} (there: {listed})')
    loaded = found[name].load()
    if not issubclass(loaded, interface):
        raise PluginError(f'"{name}" of {kind.value} is not a {interface.__name__}')
    return loaded


def make(kind: Kind, name: str, interface: type[T], what: str, /, *args: object, **options: object) -> T:
    """Return a new object of the class called ``name``.

    Args:
        kind, name, interface: As in ``load``.
        what: What it is for, for messages: ``'checker "disk"'``.
        args, options: What its constructor gets.

    Raises:
        PluginError: As in ``load``, or the constructor does not accept what it gets.
        NlbfarmError: The constructor raised it.
    """
    made = load(kind, name, interface)
    try:
        return made(*args, **options)
    except NlbfarmError:
        raise
    except Exception as error:
        where = f'{made.__module__}.{made.__qualname__} (plug-in "{name}")'
        raise PluginError(f"{what}: {where} cannot be made: {type(error).__name__}: {error}") from error


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
