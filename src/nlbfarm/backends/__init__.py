"""Packet filters, and the choice of one.

- ``memory``: in this process, for tests and embedding trials.
- ``nfqueue``: new flows in processes of its own, what was decided in the Linux kernel.
- ``windivert``: in a process of its own, on Windows.
- ``nftables``: in the Linux kernel. ``render`` writes the scripts (pure; ``ruleset`` is what all packet paths
  in the kernel share), ``nlbfarm.nft`` runs them, ``table`` is what is in the kernel, ``renewal`` the lease,
  ``watch`` who else touches it, ``flows`` which connections are left (``conntrack`` asks the kernel),
  ``marks`` the numbers they share.
- ``bucketing``: a vendor's own bucket function, by name.

A package adds its own through the entry-point group ``nlbfarm.backends``: a name and a class of
``FilterBackend``.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlbfarm.backends.bucketing import load_function
from nlbfarm.core.judging import BucketFunction
from nlbfarm.errors import HostError, NlbfarmError, UsageError
from nlbfarm.interfaces import FilterBackend, Usability
from nlbfarm.plugins import Kind, Plugin, available, make

if TYPE_CHECKING:
    from nlbfarm.backends.windivert.removal import VipRemoval

__all__ = ["AUTO", "Options", "choose", "names", "survey"]

AUTO = "auto"
"""The name that leaves the choice to the host."""

_FIRST = ("nftables", "nfqueue", "windivert", "memory")
"""What comes with nlbfarm, in the order in which ``auto`` tries it; plug-ins follow by name."""

_NO_FUNCTION = 'it knows no bucket function but its own; "nfqueue" (Linux) and "windivert" do'

# One filters no real packet; the other is for tests where there is no Windows.
_NEVER_BY_ITSELF = frozenset({"memory"} if os.name == "nt" else {"memory", "windivert"})


def names() -> list[str]:
    """Return the names of all backends: first what comes with nlbfarm, then plug-ins by name."""
    return [plugin.name for plugin in _plugins()]


@dataclass(frozen=True, slots=True)
class Options:
    """What a node says to a backend; each takes what its constructor has a keyword for.

    Args:
        queues: ``queues``: packet queues.
        bucket: ``bucket``: a bucket function of one's own, ``"package.module:name"``, or empty.
        udp_idle: ``udp_idle``: seconds of silence that end a UDP flow.
        removal: ``removal``: the node's VIP manager, for a backend that takes the VIPs away when the node
            cannot.
    """

    queues: int = 1
    bucket: str = ""
    udp_idle: float = 60.0
    removal: VipRemoval | None = None


async def choose(name: str, options: Options | None = None) -> tuple[FilterBackend, str]:
    """Make the backend of that name, or with ``"auto"`` the first that can work on this host.

    ``auto`` tries the built-in ones, then plug-ins by name; never ``memory``, and ``windivert`` only on
    Windows. With a bucket function it takes only one that can go by it.

    Args:
        name: Its name, or ``"auto"``.
        options: What it is told.

    Returns:
        The backend, not open, and one sentence that says what was chosen and why.

    Raises:
        UsageError: There is no backend of that name; the bucket function cannot be imported, or the backend
            takes none.
        HostError: It cannot work here (none can, for ``auto``), and why.
        PluginError: It cannot be imported or made, or is no ``FilterBackend``.
    """
    plugins = _plugins()
    options = options or Options()
    function = load_function(options.bucket) if options.bucket else None
    if name != AUTO:
        for plugin in plugins:
            if plugin.name == name:
                backend = _load(plugin)
                if function is not None and "bucket" not in _keywords(backend):
                    raise UsageError(f"backend {name!r}: {_NO_FUNCTION}")
                usability = await backend.probe()
                if not usability.usable:
                    raise HostError(f"backend {name!r} cannot work on this host: {usability.detail}")
                made = _make(plugin, backend, options, function)
                return made, f"{name}, as configured: {usability.detail}"
        known = ", ".join(plugin.name for plugin in plugins)
        raise UsageError(f"there is no backend {name!r}: write {AUTO!r}, or one of {known}")
    refused: list[str] = []
    for plugin in plugins:
        if plugin.name in _NEVER_BY_ITSELF:
            continue
        usable, usability = await _try(plugin)
        if usable is not None and function is not None and "bucket" not in _keywords(usable):
            usability = Usability(False, _NO_FUNCTION)
        if usable is not None and usability.usable:
            passed = f" ({'; '.join(refused)})" if refused else ""
            return (
                _make(plugin, usable, options, function),
                f"{plugin.name}, the first that can work here: {usability.detail}{passed}",
            )
        refused.append(f"{plugin.name}: {usability.detail}")
    raise HostError(f"no packet filter can work on this host: {'; '.join(refused)}")


async def survey() -> list[tuple[str, Usability]]:
    """Say of every backend whether it can work on this host, in the order of ``names``; changes nothing."""
    return [(plugin.name, (await _try(plugin))[1]) for plugin in _plugins()]


async def _try(plugin: Plugin) -> tuple[type[FilterBackend] | None, Usability]:
    try:
        backend = _load(plugin)
        return backend, await backend.probe()
    except NlbfarmError as error:
        return None, Usability(False, str(error))


def _plugins() -> list[Plugin]:
    found = available(Kind.BACKEND)
    return [*(found[name] for name in _FIRST), *(found[name] for name in sorted(found) if name not in _FIRST)]


def _load(plugin: Plugin) -> type[FilterBackend]:
    loaded: type[FilterBackend] = plugin.load()
    return loaded


def _keywords(backend: type[FilterBackend]) -> frozenset[str]:
    return frozenset(inspect.signature(backend).parameters)


def _make(
    plugin: Plugin, backend: type[FilterBackend], options: Options, function: BucketFunction | None
) -> FilterBackend:
    told = {
        "queues": options.queues,
        "bucket": function,
        "udp_idle": options.udp_idle,
        "removal": options.removal,
    }
    taken = {key: value for key, value in told.items() if key in _keywords(backend)}
    what = "the packet filter"
    return make(Kind.BACKEND, plugin.name, FilterBackend, what, **taken)  # type: ignore[type-abstract]
