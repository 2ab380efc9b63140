"""``[[checkers]]``: what a node looks at, and what it does when that is down.

The models of the types are in ``checker_types_network`` and ``checker_types_host``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from nlbfarm.config.checker_types import CheckerEntry, OnFailure
from nlbfarm.config.checker_types_host import (
    CertificateChecker,
    ProcessChecker,
    ResourcesChecker,
    ScriptChecker,
)
from nlbfarm.config.checker_types_network import (
    HttpChecker,
    InterfaceChecker,
    IpChecker,
    ModuleChecker,
    PingChecker,
    TcpChecker,
)
from nlbfarm.config.plugged import installed
from nlbfarm.plugins import Kind

__all__ = [
    "CHECKER_TYPES",
    "OTHER_WORDS",
    "CertificateChecker",
    "Checker",
    "CheckerEntry",
    "HttpChecker",
    "InterfaceChecker",
    "IpChecker",
    "ModuleChecker",
    "OnFailure",
    "PingChecker",
    "PluginChecker",
    "ProcessChecker",
    "ResourcesChecker",
    "ScriptChecker",
    "TcpChecker",
]


class PluginChecker(CheckerEntry):
    """A ``[[checkers]]`` entry whose type is the name of an installed plug-in.

    Attributes:
        options: What the plug-in's class gets as keyword arguments; which there are is its business.
    """

    type: Annotated[str, installed(Kind.CHECKER)]
    options: Mapping[str, Any] = Field(default_factory=dict)


CHECKER_TYPES: Mapping[str, type[CheckerEntry]] = {
    "tcp": TcpChecker,
    "http": HttpChecker,
    "ping": PingChecker,
    "interface": InterfaceChecker,
    "ip": IpChecker,
    "process": ProcessChecker,
    "resources": ResourcesChecker,
    "certificate": CertificateChecker,
    "script": ScriptChecker,
    "module": ModuleChecker,
}
"""Model of each ``type``."""

OTHER_WORDS: Mapping[str, str] = {
    "https": '"http", and a url that begins with https',
    "intf": '"interface"',
    "custom": '"script"',
    "icmp": '"ping"',
    "disk": '"resources"',
    "exec": '"script"',
}
"""What others call a type, and what to write here."""


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind is None or kind in CHECKER_TYPES else "plug-in"


Checker = Annotated[
    Annotated[TcpChecker, Tag("tcp")]
    | Annotated[HttpChecker, Tag("http")]
    | Annotated[PingChecker, Tag("ping")]
    | Annotated[InterfaceChecker, Tag("interface")]
    | Annotated[IpChecker, Tag("ip")]
    | Annotated[ProcessChecker, Tag("process")]
    | Annotated[ResourcesChecker, Tag("resources")]
    | Annotated[CertificateChecker, Tag("certificate")]
    | Annotated[ScriptChecker, Tag("script")]
    | Annotated[ModuleChecker, Tag("module")]
    | Annotated[PluginChecker, Tag("plug-in")],
    Discriminator(_kind),
]
"""Any checker; ``type`` tells which."""
