"""Checkers: each looks at one resource of this node, once a call.

- ``tcp``          is a connection accepted?
- ``http``         is a page answered, and is it the right one?
- ``ping``         does an address answer ICMP echo?
- ``interface``    has a network interface its link?
- ``ip``           is the virtual IP on this host, and nobody else's?
- ``process``      do the processes of an application run, and do they listen?
- ``resources``    is there enough processor, memory, disk, and are there too many open files?
- ``certificate``  does a certificate expire soon?
- ``script``       does a program say that all is well?
- ``module``       how is another farm's node on this host?

What they share: ``connecting`` (connections and names), ``threads`` (what may block), ``patterns`` (regular
expressions), ``processes`` (which ones are meant), ``words`` (numbers in sentences), ``view`` (what they are
told of the node).

``build`` makes one from its configuration, or that of an installed plug-in (entry-point group
``nlbfarm.checkers``). When, how often, and how many failures count (interval, rise, fall) is the runtime's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

from nlbfarm.checkers.certificate import CertificateChecker
from nlbfarm.checkers.http import HttpChecker
from nlbfarm.checkers.interface import InterfaceChecker
from nlbfarm.checkers.ip import IpChecker
from nlbfarm.checkers.module import ModuleChecker
from nlbfarm.checkers.ping import PingChecker
from nlbfarm.checkers.process import ProcessChecker
from nlbfarm.checkers.processes import Selection
from nlbfarm.checkers.resources import Limits, ResourcesChecker
from nlbfarm.checkers.script import ScriptChecker
from nlbfarm.checkers.tcp import TcpChecker
from nlbfarm.checkers.view import HostView
from nlbfarm.interfaces import Checker
from nlbfarm.plugins import Kind, make

__all__ = [
    "CertificateChecker",
    "CheckerConfig",
    "HostView",
    "HttpChecker",
    "InterfaceChecker",
    "IpChecker",
    "Limits",
    "ModuleChecker",
    "PingChecker",
    "ProcessChecker",
    "ResourcesChecker",
    "ScriptChecker",
    "Selection",
    "TcpChecker",
    "build",
]


class CheckerConfig(Protocol):
    """What every checker's configuration has; more depends on ``type``.

    Each class reads what its constructor needs from attributes of the names in docs/checkers.md; a
    plug-in has ``options``, the keyword arguments of its class.
    """

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def type(self) -> str:
        """Which checker."""

    @property
    def timeout(self) -> timedelta:
        """How long a look may take."""


_MAKERS: Mapping[str, Callable[[Any, HostView], Checker]] = {
    "certificate": CertificateChecker.from_config,
    "http": HttpChecker.from_config,
    "interface": InterfaceChecker.from_config,
    "ip": IpChecker.from_config,
    "module": ModuleChecker.from_config,
    "ping": PingChecker.from_config,
    "process": ProcessChecker.from_config,
    "resources": ResourcesChecker.from_config,
    "script": ScriptChecker.from_config,
    "tcp": TcpChecker.from_config,
}


_NO_VIEW = HostView()


def build(config: CheckerConfig, host: HostView = _NO_VIEW) -> Checker:
    """Return the checker that ``config`` describes.

    Args:
        config: What was configured.
        host: The node that it looks for.

    Raises:
        PluginError: Nothing is installed for its type, or it does not accept the options.
        UsageError: It cannot be meant.
        HostError: This host lacks something that it needs.
    """
    made = _MAKERS.get(config.type)
    return made(config, host) if made is not None else _plugged(config)


def _plugged(config: Any) -> Checker:
    what = f'checker "{config.name}"'
    return make(Kind.CHECKER, config.type, Checker, what, **config.options)  # type: ignore[type-abstract]
