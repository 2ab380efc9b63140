"""The check as a command: ``python -m nlbfarm.testing.conformance nftables``; it needs root."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from nlbfarm.backends import choose
from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.conformance.check import PacketProbe, check_filter_backend
from nlbfarm.testing.conformance.engine import APART
from nlbfarm.testing.conformance.packet import Packet


class _Facts:
    def __init__(self, backend: FilterBackend) -> None:
        self._backend = backend

    async def offer(self, packet: Packet) -> bool:
        assert isinstance(self._backend, MemoryBackend)
        return self._backend.judge(packet.facts).accepted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 0: no difference, 1: differences, 2: it cannot run here.

    Args:
        arguments: Those of the command line by default.
    """
    parser = argparse.ArgumentParser(prog="python -m nlbfarm.testing.conformance", description=__doc__)
    parser.add_argument("backend", help="name of the backend, as in filter.backend")
    parser.add_argument("--packets", type=int, default=20_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--family", type=int, choices=(4, 6), help="one IP version (default: both)")
    parser.add_argument("--only", type=int, nargs="+", default=(), metavar="INDEX", help="send only these")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{asyncio.run(_check(given))}\n")
    except AssertionError as difference:
        sys.stderr.write(f"{difference}\n")
        return 1
    except NlbfarmError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    return 0


async def _check(given: argparse.Namespace) -> object:
    backend, _ = await choose(given.backend)
    probe: type[PacketProbe] | None = _Facts if isinstance(backend, MemoryBackend) else None
    engine = backend.name == "windivert" and sys.platform == "linux"
    return await check_filter_backend(
        lambda: backend,
        packets=given.packets,
        seed=given.seed,
        families=(given.family,) if given.family else (4, 6),
        probe=probe,
        only=given.only,
        repairs_checksums=engine,
        apart=APART if engine else {},
    )


if __name__ == "__main__":
    sys.exit(main())
