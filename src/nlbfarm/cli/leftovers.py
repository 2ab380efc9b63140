"""``cleanup``: put back what a killed node left on this host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from nlbfarm import plugins
from nlbfarm.cli.common import Exit, control_path, echo_json, farm_options, find_farm, json_option
from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.instance import claim
from nlbfarm.interfaces import FilterBackend

__all__ = ["cleanup"]


@click.command()
@farm_options
@json_option
def cleanup(farm: str | None, config_file: Path | None, runtime_dir: Path, as_json: bool) -> int:
    """Put back what a killed node left: virtual IPs, sysctls, filter tables, socket."""
    name = find_farm(farm, config_file, runtime_dir)
    done: list[str] = []
    if name is not None:
        with claim(name):  # no node may start while its leftovers are taken away
            done, failures = asyncio.run(_put_back(name, runtime_dir))
        if failures:
            for line in done:
                click.echo(f"  {line}", err=True)
            raise HostError("\n  ".join(["not everything could be put back; try again as root:", *failures]))
    if as_json:
        echo_json({"farm": name, "done": done})
        return Exit.OK
    for line in done:
        click.echo(line)
    if not done:
        click.echo("nothing to do" + (f": farm {name} left nothing on this host" if name else ""))
    return Exit.OK


async def _put_back(farm: str, runtime_dir: Path) -> tuple[list[str], list[str]]:
    """Put everything back, in the order that never leaves a VIP without a filter."""
    done: list[str] = []
    failures: list[str] = []
    journal = runtime_dir / farm / "journal.json"
    try:
        done += await _vips(journal)
    except NlbfarmError as error:
        # With a VIP perhaps still there, its filter has to stay.
        return done, [str(error)]
    for plugin in plugins.available(plugins.Kind.BACKEND).values():
        try:
            backend = plugins.load(plugins.Kind.BACKEND, plugin.name, FilterBackend)  # type: ignore[type-abstract]
            done += await backend.cleanup(farm)
        except NlbfarmError as error:
            failures.append(f"{plugin.name}: {error}")
    if not failures:
        try:
            done += _files(farm, runtime_dir)
        except OSError as error:
            failures.append(str(error))
    return done, failures


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
