"""Services: applications that a node starts, stops and watches.

- ``systemd``, ``systemd_bus``  a unit of systemd, over D-Bus
- ``windows``, ``scm``          a service of Windows
- ``command``                   a program that is supervised: on Linux by ``kept`` and the ``keeper`` process,
                                on Windows by ``job`` and a ``job_object``
- ``scripts``, ``programs``     an application that has scripts of its own
- ``told``                      what they are told in their environment

``build`` makes one from its configuration, or that of an installed plug-in (entry-point group
``nlbfarm.services``). When one is started, stopped and restarted is the node's business.

Beside what ``nlbfarm.interfaces.Service`` asks for, each of ours has ``pids``; ``notes``, which says what on
this host is not as it should be; and ``lacks``, what keeps it from being started.
"""

from __future__ import annotations

from typing import Any

from nlbfarm.interfaces import Service, ServiceContext
from nlbfarm.plugins import Kind, make
from nlbfarm.services.command import CommandService
from nlbfarm.services.scripts import ScriptsService
from nlbfarm.services.systemd import SystemdService
from nlbfarm.services.windows import WindowsService

__all__ = ["CommandService", "ScriptsService", "SystemdService", "WindowsService", "build"]


def build(entry: Any, context: ServiceContext) -> Service:
    """Return the service that an entry of the configuration describes.

    Args:
        entry: Has ``systemd``, ``windows``, ``command``, ``scripts`` and ``type``, all ``None`` but the one
            that says of what kind it is; and what goes with that one.
        context: Where it runs.

    Raises:
        PluginError: Nothing is installed for its type, or it does not accept the options.
        NlbfarmError: This host cannot have such a service.
    """
    if entry.systemd is not None:
        return SystemdService.from_config(entry, context)
    if entry.windows is not None:
        return WindowsService.from_config(entry, context)
    if entry.command is not None:
        return CommandService.from_config(entry, context)
    if entry.scripts is not None:
        return ScriptsService.from_config(entry, context)
    what = f'service "{context.service}"'
    return make(Kind.SERVICE, entry.type, Service, what, context, **entry.options)  # type: ignore[type-abstract]
