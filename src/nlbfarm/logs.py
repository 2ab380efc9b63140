"""Logging: structured events, for people on a terminal and as JSON lines otherwise.

An event has a stable name with dots (``node.started``) and fields; names are part of the
interface, sentences are not. Warnings of libraries that use ``logging`` become events, too
(``library.message``).

Writing never holds up the caller: a terminal that is stopped, or a journal that is stuck, would
stop the heartbeats with it. A thread writes; when it is far behind, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["LogOutput", "configure", "set_level"]

_WAITING_LINES = 10_000
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LogOutput:
    """Writes lines to a stream in a thread of its own.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="nlbfarm-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Hand a line over; never waits."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    debug = info = warning = warn = error = critical = exception = fatal = failure = log = msg = write

    def close(self, timeout: float = 1.0) -> None:
        """Write what is waiting, for at most ``timeout`` seconds; may be called twice."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(timeout)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            text = f"{line}\n"
            if dropped:
                text = f'{{"event": "log.dropped", "level": "warning", "lines": {dropped}}}\n{text}'
            try:
                self._stream.write(text)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                return  # the reader is gone, and with it whom we could tell


class _FromLogging(logging.Handler):
    """Passes records of ``logging`` on as events."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        fields: dict[str, Any] = {"library": record.name, "message": message}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, "library.message", **fields)


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> LogOutput:
    """Set logging up for the process.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``console``, ``json``, or ``auto``: console on a terminal, JSON lines otherwise.
        stream: Where to; standard error by default.

    Returns:
        The output; close it as the last thing, so that the last lines are written.
    """
    stream = sys.stderr if stream is None else stream
    console = form == "console" or (form == "auto" and stream.isatty())
    output = LogOutput(stream)
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    if console:
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.dev.ConsoleRenderer(colors=stream.isatty()),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _event_first,
            structlog.processors.JSONRenderer(default=str),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _FromLogging)]:
        root.removeHandler(handler)
    root.addHandler(_FromLogging())
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    return output


def set_level(level: str) -> None:
    """Log events of this level and above from now on: ``debug``, ``info``, ``warning`` or ``error``."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]))
    logging.getLogger().setLevel(max(_LEVELS[level], logging.WARNING))


def _event_first(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Put what a reader looks for at the start of the line."""
    head = {key: fields.pop(key) for key in ("timestamp", "level", "event") if key in fields}
    return {**head, **fields}
