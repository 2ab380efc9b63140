"""A node as a program embeds it, on any system; four times a second it says what it knows.

``python node.py CONFIG NAME DIRECTORY CLIENT:PORT...`` runs the node ``NAME`` until it is killed. Each line
on standard output that begins with a brace is JSON: ``platform``, the ``status`` of ``nlbfarm-node status
--json``, and ``explained``: for each client the key, bucket and owner of ``nlbfarm-node explain``, for a
connection to the farm's first rule.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from nlbfarm.assembly import build
from nlbfarm.assembly.verbs import verbs
from nlbfarm.config.keys import load_keys
from nlbfarm.config.loading import load
from nlbfarm.errors import UsageError

EVERY_S = 0.25


async def main(config_file: Path, name: str, directory: Path, clients: list[str]) -> None:
    """Run the node."""
    config = load(config_file)
    keys = load_keys(config.farm.key_file)
    (node,) = (entry for entry in config.nodes if entry.name == name)
    service = f"{config.rules[0].vip}:{config.rules[0].ports[0]}"
    runtime = await build(config, keys, node.id, runtime_dir=directory / "run", state_dir=directory / "state")
    answers = verbs(runtime, frozenset(node.addresses), _no_reload)
    try:
        await runtime.open()
        while True:
            explained: dict[str, Any] = {}
            for client in clients:
                whole = await answers["explain"]({"client": client, "service": service})
                explained[client] = [whole["key"], whole["bucket"], whole["owner"]]
            status = await answers["status"]({})
            print(
                json.dumps({"platform": sys.platform, "status": status, "explained": explained}), flush=True
            )
            await asyncio.sleep(EVERY_S)
    finally:
        await runtime.close()


async def _no_reload(dry_run: bool) -> dict[str, Any]:
    raise UsageError("this program does not reload")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
