"""Packet filters, and the choice of one.

- ``memory``: in this process, for tests and embedding trials.
- ``nftables``: in the Linux kernel. ``render`` writes the scripts (pure), ``nlbfarm.nft`` runs them,
  ``table`` is what is in the kernel, ``renewal`` the lease, ``watch`` who else touches it, ``marks`` the
  numbers they share.

A package adds its own through the entry-point group ``nlbfarm.backends``: a name and a class of
``FilterBackend``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from nlbfarm.errors import HostError, NlbfarmError, PluginError, UsageError
from nlbfarm.interfaces import FilterBackend, Usability

__all__ = ["AUTO", "ENTRY_POINTS", "choose", "names", "survey"]

AUTO = "auto"
"""The name that leaves the choice to the host."""

ENTRY_POINTS = "nlbfarm.backends"
"""The entry-point group that backends are found in."""

# What comes with nlbfarm, in the order in which ``auto`` tries it; known also without installed metadata.
_BUILT_IN = {
    "nftables": "nlbfarm.backends.nftables:NftablesBackend",
    "memory": "nlbfarm.backends.memory:MemoryBackend",
}
_NEVER_BY_ITSELF = frozenset({"memory"})  # it filters no real packet


def names() -> list[str]:
    """Return the names of all backends: first what comes with nlbfarm, then plug-ins by name."""
    return [point.name for point in _points()]


async def choose(name: str) -> tuple[FilterBackend, str]:
    """Make the backend of that name, or with ``"auto"`` the first that can work on this host.

    ``auto`` tries the built-in ones, then plug-ins by name; never ``memory``.

    Returns:
        The backend, not open, and one sentence that says what was chosen and why.

    Raises:
        UsageError: There is no backend of that name.
        HostError: It cannot work here (none can, for ``auto``), and why.
        PluginError: It cannot be imported or is no ``FilterBackend``.
    """
    points = _points()
    if name != AUTO:
        for point in points:
            if point.name == name:
                backend = _load(point)
                usability = await backend.probe()
                if not usability.usable:
                    raise HostError(f"backend {name!r} cannot work on this host: {usability.detail}")
                return backend(), f"{name}, as configured: {usability.detail}"
        known = ", ".join(point.name for point in points)
        raise UsageError(f"there is no backend {name!r}: write {AUTO!r}, or one of {known}")
    refused: list[str] = []
    for point in points:
        if point.name in _NEVER_BY_ITSELF:
            continue
        backend_or_none, usability = await _try(point)
        if backend_or_none is not None and usability.usable:
            passed = f" ({'; '.join(refused)})" if refused else ""
            return (
                backend_or_none(),
                f"{point.name}, the first that can work here: {usability.detail}{passed}",
            )
        refused.append(f"{point.name}: {usability.detail}")
    raise HostError(f"no packet filter can work on this host: {'; '.join(refused)}")


async def survey() -> list[tuple[str, Usability]]:
    """Say of every backend whether it can work on this host, in the order of ``names``; changes nothing."""
    return [(point.name, (await _try(point))[1]) for point in _points()]


async def _try(point: EntryPoint) -> tuple[type[FilterBackend] | None, Usability]:
    try:
        backend = _load(point)
        return backend, await backend.probe()
    except NlbfarmError as error:
        return None, Usability(False, str(error))


def _points() -> list[EntryPoint]:
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    built_in = [EntryPoint(name, value, ENTRY_POINTS) for name, value in _BUILT_IN.items()]
    plug_ins: Iterable[EntryPoint] = (point for name, point in installed.items() if name not in _BUILT_IN)
    return [*built_in, *sorted(plug_ins, key=lambda point: point.name)]


def _load(point: EntryPoint) -> type[FilterBackend]:
    try:
        loaded = point.load()
    except Exception as error:  # whatever a stranger's module raises
        raise PluginError(f"backend {point.name!r} ({point.value}) cannot be imported: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, FilterBackend)):
        raise PluginError(f"backend {point.name!r} ({point.value}) is no FilterBackend")
    return loaded
