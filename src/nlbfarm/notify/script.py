"""A target that is a program: it gets each message as JSON on its standard input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

import psutil

from nlbfarm.notify.message import DeliveryError, Message, Target

__all__ = ["ScriptTarget"]

TIMEOUT_S = 30.0
LARGEST_OUTPUT = 1024 * 1024
_LOOK_S = 0.05
_SHOWN = 200


class ScriptTarget(Target):
    """Runs a program for each message; what it prints is told if it fails.

    Args:
        command: The program and its arguments; no shell is asked.
        timeout: Seconds; then it is killed, with all that it has started.
    """

    def __init__(self, command: Sequence[str], timeout: float = TIMEOUT_S) -> None:
        self.name = f"script {command[0]}"
        self._command = list(command)
        self._timeout = timeout

    def send(self, message: Message) -> None:
        environ = {**os.environ, "NLBFARM_FARM": message.farm, "NLBFARM_NODE": message.node}
        environ.pop("NOTIFY_SOCKET", None)  # it does not speak for the node
        try:
            # Files, not pipes: a program that reads nothing, or prints without end, holds up nothing here.
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
                given.write(json.dumps(message.as_json()).encode() + b"\n")
                given.seek(0)
                process = subprocess.Popen(
                    self._command,
                    stdin=given,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    env=environ,
                    start_new_session=True,
                )
                problem = self._watch(process, printed)
                if problem:
                    said = _last_words(printed)
                    raise DeliveryError(f"{problem}{f': {said}' if said else ''}")
        except OSError as error:
            raise DeliveryError(f"cannot be run: {error.strerror or error}") from None

    def _watch(self, process: subprocess.Popen[bytes], printed: IO[bytes]) -> str:
        """Return what went wrong, when it has ended; empty if nothing did."""
        deadline = time.monotonic() + self._timeout
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_LOOK_S)
                return f"exit code {code}" if code > 0 else f"killed by signal {-code}" if code else ""
            if time.monotonic() >= deadline:
                _kill(process)
                return f"killed, because it took longer than {self._timeout:g} s"
            if os.fstat(printed.fileno()).st_size > LARGEST_OUTPUT:
                _kill(process)
                return f"killed, because it printed more than {LARGEST_OUTPUT} bytes"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all that it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        process.kill()
    process.wait()


def _last_words(printed: IO[bytes]) -> str:
    """Return the last line that is not empty."""
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - 4096))
    lines = [line.strip() for line in printed.read(4096).decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return last if len(last) <= _SHOWN else last[: _SHOWN - 3] + "..."
