"""Another configuration while the node runs: all of it, or nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlbfarm import logs
from nlbfarm.assembly.supervised import CheckMaker
from nlbfarm.config import FarmConfig, FarmKeys, derive
from nlbfarm.config.changes import Changes, compare
from nlbfarm.config.keys import load_keys
from nlbfarm.config.loading import load
from nlbfarm.core.wire import Codec
from nlbfarm.errors import ConfigError, NlbfarmError, UsageError
from nlbfarm.parts import Check
from nlbfarm.runtime import Runtime

__all__ = ["Reloader"]


class Reloader:
    """Reloads the configuration of one running node.

    Args:
        runtime: The node.
        config, keys: What it was built from.
        node: Its id.
        file: The configuration's file; ``None``: there is none, and nothing can be reloaded.
        runtime_dir: Where the farms of this host have their directories.
    """

    def __init__(
        self,
        runtime: Runtime,
        config: FarmConfig,
        keys: FarmKeys,
        node: int,
        file: Path | None,
        runtime_dir: Path,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._keys = keys
        self._node = node
        self._addresses = config.node(node).addresses
        self._file = file
        self._log = runtime.log
        self._busy = asyncio.Lock()
        self._maker = CheckMaker(node, runtime.parts.vips, runtime.parts.services, runtime_dir)

    async def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """Load the file again and take it over, if that is possible while the node runs.

        Args:
            dry_run: Only say what would change.

        Returns:
            ``file``; ``problems`` (the file is wrong: nothing was changed), ``refused`` (it needs a new
            process: nothing was changed) and ``changed``, sentences; ``applied``.

        Raises:
            UsageError: The node was not started from a file.
            NlbfarmError: It is still starting, or a checker cannot be made.
        """
        if self._file is None:
            raise UsageError(
                "this node was not started from a configuration file: there is nothing to reload"
            )
        self._runtime.running()
        answer: dict[str, Any] = {"file": str(self._file), "problems": [], "refused": [], "changed": []}
        async with self._busy:
            try:
                config = await asyncio.to_thread(load, self._file)
                keys = await asyncio.to_thread(load_keys, config.farm.key_file)
            except ConfigError as error:
                answer["problems"] = [str(problem) for problem in error.problems]
                return answer | {"applied": False}
            changes = compare(self._config, config, self._keys, keys, self._node, self._addresses)
            answer |= {"refused": list(changes.refused), "changed": list(changes.taken)}
            applied = not dry_run and not changes.refused
            if applied:
                await self._apply(config, keys, changes)
            return answer | {"applied": applied}

    async def reload_by_signal(self) -> None:
        """Reload as SIGHUP asks; whoever sent it reads the log."""
        try:
            answer = await self.reload()
        except NlbfarmError as error:
            self._log.error("node.reload_failed", error=str(error))
            return
        if answer["problems"] or answer["refused"]:
            self._log.error("node.reload_refused", problems=answer["problems"], refused=answer["refused"])

    def check(self) -> None:
        """See whether a new process could be started from the file.

        Raises:
            UsageError: The node was not started from a file, or it no longer names this node.
            ConfigError: It is wrong.
        """
        if self._file is None:
            raise UsageError("this node was not started from a configuration file")
        config = load(self._file)
        load_keys(config.farm.key_file)
        if all(node.id != self._node for node in config.nodes):
            raise UsageError(f"{self._file} no longer names this node (id {self._node})")

    async def _apply(self, config: FarmConfig, keys: FarmKeys, changes: Changes) -> None:
        runtime, parts = self._runtime, self._runtime.parts
        checks = self._checks(config)  # the only thing that can fail comes first
        if config.log.level is not self._config.log.level:
            logs.set_level(config.log.level.value)
        if all(node.id != self._node for node in config.nodes):
            runtime.administration.remove()
        else:
            _, peers = derive.addresses(config, self._node)
            codec = parts.codec
            if keys != self._keys:
                codec = Codec(config.farm.name, derive.keyring(keys), codec.newest)
            await runtime.reconfigure(
                replace(
                    parts,
                    settings=derive.settings(config, keys, self._node),
                    codec=codec,
                    peers=peers,
                    former_digest=derive.former_digest(config),
                    peer_powers=derive.peer_powers(config, self._node),
                    checks=checks,
                    failover_rules=derive.failover_rules(config),
                )
            )
            runtime.administration.restore()
        self._config, self._keys = config, keys
        self._log.info("node.reloaded", file=str(self._file), changed=list(changes.taken))

    def _checks(self, config: FarmConfig) -> list[Check]:
        """Return the checkers of ``config``; those whose entry has not changed are those that run."""
        entries = {entry.name: entry for entry in self._config.checkers}
        running = {one.name: one for one in self._runtime.parts.checks}
        return [
            running[entry.name]
            if entries.get(entry.name) == entry and entry.name in running
            else self._maker.make(config, entry)
            for entry in config.checkers
        ]
