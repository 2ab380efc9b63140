"""What the lab's client processes have in common: ports by bucket, options, and reading an answer."""

from __future__ import annotations

import argparse
import errno
import random
from collections import deque
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity

__all__ = ["Endpoints", "body", "name_of", "parse"]


class Endpoints:
    """Client addresses and ports, by the bucket that they fall into.

    Args:
        seed: Seed of the group.
        addresses: The client's addresses; a bucket takes them in turn.
        ports: Ports to use on each.
        each: How many to keep for a bucket.
    """

    def __init__(self, seed: int, addresses: Sequence[IPv4Address], ports: Sequence[int], each: int) -> None:
        most = each // len(addresses)
        by_address: list[list[deque[tuple[str, int]]]] = []
        for address in addresses:
            free: list[deque[tuple[str, int]]] = [deque() for _ in range(BUCKETS)]
            wanting = BUCKETS
            for port in random.sample(ports, len(ports)):
                queue = free[bucket_of(flow_key(Affinity.CLIENT_PORT, address, port), seed)]
                if len(queue) < most:
                    queue.append((str(address), port))
                    wanting -= len(queue) == most
                if not wanting:
                    break
            by_address.append(free)
        self._free: list[deque[deque[tuple[str, int]]]] = [
            deque(queues) for queues in zip(*by_address, strict=True)
        ]

    def next(self, bucket: int) -> tuple[str, int]:
        """Return the endpoint of ``bucket`` that has rested longest."""
        queues = self._free[bucket]
        queues.rotate(-1)
        queues[-1].rotate(-1)
        return queues[-1][-1]


def body(data: bytes) -> str | None:
    """Return the body of a complete HTTP answer, ``None`` if more is to come."""
    head, separator, page = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    for field in head.split(b"\r\n")[1:]:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"content-length":
            return page.decode(errors="replace").strip() if len(page) >= int(value) else None
    return None


def name_of(code: int) -> str:
    """Return the name of an error number, as ``ECONNRESET``."""
    return errno.errorcode.get(code, str(code))


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, int]:
    """Read the command line, with the options that every client has.

    Returns:
        The options (``vip``, ``port`` and the parser's own), and the seed of the group.
    """
    parser.add_argument("--vip", required=True)
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--config", type=Path, help="the farm's configuration, for the seed of the group")
    parser.add_argument("--group", default="web")
    parser.add_argument("--seed", type=int, help="the seed itself")
    options = parser.parse_args()
    if options.seed is not None:
        return options, options.seed
    from nlbfarm.config import derive, keys, load

    config = load(options.config)
    group = derive.policy(config, keys.load_keys(config.farm.key_file)).group(options.group)
    return options, group.seed
