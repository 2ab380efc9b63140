"""Checkers: each looks at one resource of this node, once a call.

- ``tcp``   is a connection accepted?
- ``http``  is a page answered?

``build`` makes one from its configuration. When, how often, and how many failures count (interval,
rise, fall) is the runtime's business.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from nlbfarm.checkers.http import HttpChecker
from nlbfarm.checkers.tcp import TcpChecker
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Checker

__all__ = ["CheckerConfig", "HttpChecker", "TcpChecker", "build"]


class CheckerConfig(Protocol):
    """What every checker's configuration has; more depends on ``type``.

    ``tcp`` reads ``address`` and ``port``; ``http`` reads ``url`` and ``status`` (those that
    are healthy).
    """

    @property
    def type(self) -> str:
        """Which checker."""

    @property
    def timeout(self) -> timedelta:
        """How long a look may take."""


def build(config: CheckerConfig) -> Checker:
    """Return the checker that ``config`` describes.

    Raises:
        UsageError: Its type is not known.
    """
    made = {"tcp": TcpChecker.from_config, "http": HttpChecker.from_config}.get(config.type)
    if made is None:
        raise UsageError(f"checker type {config.type!r} is not known; tcp and http are")
    return made(config)
