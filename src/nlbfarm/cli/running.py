"""``run``: the node itself."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn

import click
import structlog

from nlbfarm import logs
from nlbfarm.cli.common import Exit, config_option, runtime_option, state_option
from nlbfarm.config.crosscheck import warnings
from nlbfarm.config.draft import Entry
from nlbfarm.config.host import host_problems, host_warnings, identify, read_host
from nlbfarm.config.keys import load_keys
from nlbfarm.config.loading import load
from nlbfarm.config.root import as_draft
from nlbfarm.errors import HostError

__all__ = ["run"]


@click.command()
@config_option(required=True)
@click.option("--node", metavar="NAME", help="Which node this host is; by default, the one with its address.")
@runtime_option
@state_option
def run(config_file: Path, node: str | None, runtime_dir: Path, state_dir: Path) -> int:
    """Be a node of the farm until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
    if sys.platform == "win32":
        raise HostError(
            "on Windows a node runs inside a program so far (nlbfarm.assembly.build): its signals and its "
            "control socket are those of Unix"
        )
    config = load(config_file)
    keys = load_keys(config.farm.key_file)
    host = read_host()
    node_id = identify(config, node, host)
    draft = as_draft(config)
    entry: Entry = next(one for one in draft.nodes if one.get("id") == node_id)
    problems = list(host_problems(draft, entry, host))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise HostError(f"this host does not fit {config_file}\n{lines}")

    from nlbfarm.assembly import (
        Ended,
        run_node,
    )  # the rest of the program: a wrong configuration is told at once

    output = logs.configure(config.log.level.value, config.log.format.value)
    try:
        log = structlog.get_logger()
        for warning in (*warnings(draft), *host_warnings(draft, entry, host)):
            log.warning("config.warning", path=warning.path, message=warning.message)
        ended = asyncio.run(
            run_node(
                config,
                keys,
                node_id,
                runtime_dir=runtime_dir,
                state_dir=state_dir,
                config_file=config_file.absolute(),
            )
        )
    finally:
        output.close()
    if ended is Ended.REPLACED:
        _begin_anew()
    return Exit.OK


def _begin_anew() -> NoReturn:
    """Run the same command line in place of this program: the nlbfarm that is installed by now.

    Raises:
        HostError: The interpreter cannot be started.
    """
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        raise HostError(f"cannot start {sys.executable} anew: {error.strerror}; start the node") from error
