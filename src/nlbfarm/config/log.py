"""``[log]``: how much is logged, and in which form. Each host may have its own."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from nlbfarm.config.types import Section, choice

__all__ = ["Log", "LogFormat", "LogLevel"]


class LogLevel(StrEnum):
    """The least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """``auto``: for people on a terminal, a JSON object a line otherwise."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class Log(Section):
    """``[log]``.

    Attributes:
        level: What is less severe is not logged.
        format: How it is written.
    """

    level: Annotated[LogLevel, choice(LogLevel)] = LogLevel.INFO
    format: Annotated[LogFormat, choice(LogFormat)] = LogFormat.AUTO
