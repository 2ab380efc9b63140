"""Packet filters, and the choice of one.

- ``memory``: in this process, for tests and embedding trials.
- ``nftables``: in the Linux kernel. ``render`` writes the scripts (pure), ``nlbfarm.nft`` runs them,
  ``table`` is what is in the kernel, ``renewal`` the lease, ``watch`` who else touches it, ``flows`` which
  connections are left (``conntrack`` asks the kernel), ``marks`` the numbers they share.

A package adds its own through the entry-point group ``nlbfarm.backends``: a name and a class of
``FilterBackend``.
"""

from __future__ import annotations

from nlbfarm.errors import HostError, NlbfarmError, UsageError
from nlbfarm.interfaces import FilterBackend, Usability
from nlbfarm.plugins import Kind, Plugin, available, make

__all__ = ["AUTO", "choose", "names", "survey"]

AUTO = "auto"
"""The name that leaves the choice to the host."""

_FIRST = ("nftables", "memory")
"""What comes with nlbfarm, in the order in which ``auto`` tries it; plug-ins follow by name."""

_NEVER_BY_ITSELF = frozenset({"memory"})  # it filters no real packet


def names() -> list[str]:
    """Return the names of all backends: first what comes with nlbfarm, then plug-ins by name."""
    return [plugin.name for plugin in _plugins()]


async def choose(name: str) -> tuple[FilterBackend, str]:
    """Make the backend of that name, or with ``"auto"`` the first that can work on this host.

    ``auto`` tries the built-in ones, then plug-ins by name; never ``memory``.

    Returns:
        The backend, not open, and one sentence that says what was chosen and why.

    Raises:
        UsageError: There is no backend of that name.
        HostError: It cannot work here (none can, for ``auto``), and why.
        PluginError: It cannot be imported or made, or is no ``FilterBackend``.
    """
    plugins = _plugins()
    if name != AUTO:
        for plugin in plugins:
            if plugin.name == name:
                backend = _load(plugin)
                usability = await backend.probe()
                if not usability.usable:
                    raise HostError(f"backend {name!r} cannot work on this host: {usability.detail}")
                return _make(plugin), f"{name}, as configured: {usability.detail}"
        known = ", ".join(plugin.name for plugin in plugins)
        raise UsageError(f"there is no backend {name!r}: write {AUTO!r}, or one of {known}")
    refused: list[str] = []
    for plugin in plugins:
        if plugin.name in _NEVER_BY_ITSELF:
            continue
        usable, usability = await _try(plugin)
        if usable is not None and usability.usable:
            passed = f" ({'; '.join(refused)})" if refused else ""
            return (
                _make(plugin),
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


def _make(plugin: Plugin) -> FilterBackend:
    return make(Kind.BACKEND, plugin.name, FilterBackend, "the packet filter")  # type: ignore[type-abstract]
