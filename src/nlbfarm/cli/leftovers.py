"""``cleanup``: put back what a killed node left on this host."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import click

from nlbfarm import plugins
from nlbfarm.cli.common import (
    Exit,
    control_path,
    echo_json,
    farm_options,
    find_farm,
    journal_path,
    json_option,
)
from nlbfarm.errors import HostError, NlbfarmError, PluginError
from nlbfarm.instance import claim
from nlbfarm.interfaces import FilterBackend

__all__ = ["cleanup"]


@click.command()
@farm_options
@json_option
def cleanup(farm: str | None, config_file: Path | None, runtime_dir: Path, as_json: bool) -> int:
    """Put back what a killed node left: virtual IPs, sysctls, filter tables, socket."""
    name = find_farm(farm, config_file, runtime_dir)
    found = _Cleanup(name or "", runtime_dir)
    if name is not None:
        with claim(name):  # no node may start while its leftovers are taken away
            asyncio.run(found.put_back())
    for note in found.notes:
        click.echo(f"nlbfarm-node: note: {note}", err=True)
    if found.failures:
        for line in found.done:
            click.echo(f"  {line}", err=True)
        again = "; try again as root" if any(map(_lacks_right, found.failures)) else ""
        raise HostError("\n  ".join([f"not everything could be put back{again}:", *map(str, found.failures)]))
    if as_json:
        echo_json({"farm": name, "done": found.done, "notes": found.notes})
        return Exit.OK
    for line in found.done:
        click.echo(line)
    if not found.done:
        click.echo("nothing to do" + (f": farm {name} left nothing on this host" if name else ""))
    return Exit.OK


class _Cleanup:
    """Puts back what a killed node of a farm left, and keeps what came of it."""

    def __init__(self, farm: str, runtime_dir: Path) -> None:
        self.farm = farm
        self.runtime_dir = runtime_dir
        self.done: list[str] = []
        self.notes: list[str] = []
        self.failures: list[Exception] = []

    async def put_back(self) -> None:
        """Put everything back, in the order that never leaves a VIP without a filter."""
        try:
            self.done += await _vips(journal_path(self.runtime_dir, self.farm))
        except NlbfarmError as error:
            # With a VIP perhaps still there, its filter has to stay.
            self.failures.append(error)
            return
        for plugin in plugins.available(plugins.Kind.BACKEND).values():
            await self._filter(plugin)
        if not self.failures:
            try:
                self.done += _files(self.farm, self.runtime_dir)
            except OSError as error:
                self.failures.append(error)

    async def _filter(self, plugin: plugins.Plugin) -> None:
        try:
            backend = plugins.load(plugins.Kind.BACKEND, plugin.name, FilterBackend)  # type: ignore[type-abstract]
            self.done += await backend.cleanup(self.farm)
        except PluginError as error:
            # What cannot be imported has hardly left a filter here; ours can always be.
            if plugin.origin == "nlbfarm":
                self.failures.append(error)
            else:
                self.notes.append(f"{error}; if it has left filters, they are still there")
        except NlbfarmError as error:
            self.failures.append(error)


def _lacks_right(error: BaseException | None) -> bool:
    """Whether a missing right is behind an error."""
    while error is not None:
        if isinstance(error, PermissionError) or getattr(error, "permission", False) is True:
            return True
        if getattr(error, "code", None) in (errno.EPERM, errno.EACCES):  # of pyroute2
            return True
        error = error.__cause__
    return False


async def _vips(journal: Path) -> list[str]:
    from nlbfarm.vip import LinuxVIPManager

    manager = LinuxVIPManager((), journal)
    try:
        return list(await manager.cleanup())
    finally:
        await manager.close()


def _files(farm: str, runtime_dir: Path) -> list[str]:
    done: list[str] = []
    socket_file = control_path(runtime_dir, farm)
    if socket_file.is_socket():
        socket_file.unlink()
        done.append(f"removed the control socket {socket_file}")
    directory = runtime_dir / farm
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
    return done
