"""Checkers: each looks at one resource of this node, once a call.

- ``tcp``   is a connection accepted?
- ``http``  is a page answered?

``build`` makes one from its configuration, or that of an installed plug-in (entry-point group
``nlbfarm.checkers``). When, how often, and how many failures count (interval,
rise, fall) is the runtime's business.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

from nlbfarm.checkers.http import HttpChecker
from nlbfarm.checkers.tcp import TcpChecker
from nlbfarm.interfaces import Checker
from nlbfarm.plugins import Kind, make

__all__ = ["CheckerConfig", "HttpChecker", "TcpChecker", "build"]


class CheckerConfig(Protocol):
    """What every checker's configuration has; more depends on ``type``.

    ``tcp`` reads ``address`` and ``port``; ``http`` reads ``url`` and ``status`` (those that
    are healthy); a plug-in has ``options``, the keyword arguments of its class.
    """

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def type(self) -> str:
        """Which checker."""

    @property
    def timeout(self) -> timedelta:
        """How long a look may take."""


def build(config: CheckerConfig) -> Checker:
    """Return the checker that ``config`` describes.

    Raises:
        PluginError: Nothing is installed for its type, or it does not accept the options.
    """
    made = {"tcp": TcpChecker.from_config, "http": HttpChecker.from_config}.get(config.type)
    return made(config) if made is not None else _plugged(config)


def _plugged(config: Any) -> Checker:
    what = f'checker "{config.name}"'
    return make(Kind.CHECKER, config.type, Checker, what, **config.options)  # type: ignore[type-abstract]
