"""What the verbs share: exit codes, options, and which farm is meant."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nlbfarm.api.control import NodeNotRunningError, call
from nlbfarm.config.loading import examine
from nlbfarm.errors import ConfigError, HostError, NlbfarmError, PluginError, UsageError
from nlbfarm.instance import AlreadyRunningError

__all__ = [
    "Exit",
    "Verbs",
    "asking",
    "config_option",
    "control_path",
    "echo_json",
    "farm_options",
    "find_farm",
    "journal_path",
    "json_option",
    "running_farms",
    "runtime_option",
    "state_option",
]

_ANSWER_S = 2.0

F = TypeVar("F", bound=Callable[..., Any])


class Exit(enum.IntEnum):
    """Exit codes of ``nlbfarm-node``; stable, documented in ``docs/cli.md``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    HOST = 4
    NOT_RUNNING = 5
    ALREADY_RUNNING = 6
    INTERRUPTED = 130


_EXITS: tuple[tuple[type[NlbfarmError], Exit], ...] = (
    (ConfigError, Exit.CONFIG),
    (NodeNotRunningError, Exit.NOT_RUNNING),
    (AlreadyRunningError, Exit.ALREADY_RUNNING),
    (HostError, Exit.HOST),
    (PluginError, Exit.HOST),
    (UsageError, Exit.USAGE),
    (NlbfarmError, Exit.FAILED),
)


class Verbs(click.Group):
    """The verbs: what one returns is the exit code, an error of ours a message and its code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            code = super().invoke(ctx)
        except NlbfarmError as error:
            click.echo(f"nlbfarm-node: {error}", err=True)
            code = next(code for kind, code in _EXITS if isinstance(error, kind))
        ctx.exit(int(code or 0))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs in the order in which one meets them."""
        return list(self.commands)


def config_option(required: bool) -> Callable[[F], F]:
    """Return the option ``--config FILE``."""
    return click.option(
        "--config",
        "-c",
        "config_file",
        type=click.Path(dir_okay=False, readable=False, path_type=Path),  # we say it better
        required=required,
        help="The farm's configuration.",
    )


runtime_option = click.option(
    "--runtime-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/run/nlbfarm"),
    show_default=True,
    envvar="NLBFARM_RUNTIME_DIR",
    show_envvar=True,
    help="Where a running node keeps its socket and its journal.",
)

state_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/nlbfarm"),
    show_default=True,
    envvar="NLBFARM_STATE_DIR",
    show_envvar=True,
    help="Where a node keeps what must survive a reboot.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def farm_options(verb: F) -> F:
    """Add the options that say which farm is meant."""
    name = click.option("--farm", metavar="NAME", help="The farm's name; needed only if there are several.")
    return name(config_option(required=False)(runtime_option(verb)))


def echo_json(value: object) -> None:
    """Print JSON for people and programs."""
    click.echo(json.dumps(value, indent=2, default=str))


def control_path(runtime_dir: Path, farm: str) -> Path:
    """Return the control socket of a farm's node."""
    return runtime_dir / farm / "control.sock"


def journal_path(runtime_dir: Path, farm: str) -> Path:
    """Return the journal of what a farm's node has changed on this host."""
    return runtime_dir / farm / "journal.json"


def find_farm(farm: str | None, config_file: Path | None, runtime_dir: Path) -> str | None:
    """Return the name of the farm that is meant: as given, from its configuration, or the only one here.

    The configuration may have errors, and its key file need not be readable by who asks.

    Returns:
        ``None`` if nothing says which, because no farm has left a trace in ``runtime_dir``.

    Raises:
        ConfigError: The configuration does not even say the name.
        UsageError: Two are named, or there are several.
        HostError: ``runtime_dir`` cannot be read.
    """
    if farm is not None and config_file is not None:
        raise UsageError("give --farm or --config, not both")
    if farm is not None:
        if not farm or "/" in farm or farm.startswith("."):
            raise UsageError(f'"{farm}" is not the name of a farm')
        return farm
    if config_file is not None:
        examined = examine(config_file)
        name = examined.draft.singles["farm"].get("name") if examined.draft is not None else None
        if name is None:
            raise ConfigError(str(config_file), examined.problems)
        return str(name)
    directories = _directories(runtime_dir)
    farms = [name for name in directories if _left_a_trace(runtime_dir, name)]
    if len(farms) > 1:
        raise UsageError(f"there are several farms here; say which with --farm: {', '.join(farms)}")
    if not farms and len(directories) == 1:
        farms = directories  # killed before it had either: its filter may be there all the same
    return farms[0] if farms else None


def running_farms(runtime_dir: Path) -> list[str]:
    """Return the names of the farms whose node answers on its control socket in ``runtime_dir``.

    Raises:
        HostError: ``runtime_dir`` cannot be read.
    """
    return [name for name in _directories(runtime_dir) if _answers(control_path(runtime_dir, name))]


def asking(
    farm: str | None, config_file: Path | None, runtime_dir: Path, *, timeout: float = 5.0
) -> Callable[[str, Mapping[str, Any]], Any]:
    """Return what asks the node of the farm that is meant: a verb and its arguments in, the result out.

    Arguments as for ``find_farm``; ``timeout`` is in seconds.

    Raises:
        NodeNotRunningError: No node is running here; also when asking.
    """
    name = find_farm(farm, config_file, runtime_dir)
    if name is None:
        raise NodeNotRunningError(f"no node is running here: no farm has a socket in {runtime_dir}")

    def ask(verb: str, args: Mapping[str, Any]) -> Any:
        try:
            return call(control_path(runtime_dir, name), verb, args, timeout=timeout)
        except NodeNotRunningError as error:
            others = [other for other in running_farms(runtime_dir) if other != name]
            if not others:
                raise
            raise NodeNotRunningError(f"{error}; running here: {', '.join(others)} (--farm NAME)") from None

    return ask


def _directories(runtime_dir: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in runtime_dir.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"cannot read {runtime_dir}: {error.strerror}") from error


def _left_a_trace(runtime_dir: Path, farm: str) -> bool:
    """Whether a farm has a control socket or a journal; its directory alone may be left of one long gone."""
    try:
        return control_path(runtime_dir, farm).exists() or journal_path(runtime_dir, farm).exists()
    except PermissionError:
        return True  # we may not look: let whoever asks meet that


def _answers(path: Path) -> bool:
    try:
        call(path, "status", timeout=_ANSWER_S)
    except NodeNotRunningError:
        return False
    except NlbfarmError:  # it says no, or hangs: it runs
        pass
    return True
