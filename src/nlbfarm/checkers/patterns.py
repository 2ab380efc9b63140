"""Regular expressions over text that others wrote, without a moment in which this process stands still.

``re`` holds Python's lock while it searches, and an innocent expression can take minutes: ``.*ready`` over a
page of one long line looks for the end again from each of its characters. In a thread that would stop the
event loop all the same, and with it the heartbeat. An expression without repetition takes no longer than the
text is long and is searched for here; every other one in a process of its own, which is killed when its time
is over.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from nlbfarm.checkers.words import clipped, one_line, seconds
from nlbfarm.errors import HostError, UsageError

__all__ = ["Pattern"]

_HARMLESS = re.compile(r"\\.|\(\?[aiLmsux]*[:)]", re.DOTALL)  # what is quoted, a plain group, flags
_REPETITION = re.compile(r"[*+?{]")

_PROGRAM = """\
import re, sys
pattern, *texts = sys.stdin.buffer.read().decode("utf-8", "surrogatepass").split("\\0")
search = re.compile(pattern).search
print(*(int(search(text) is not None) for text in texts))
"""


class Pattern:
    """A regular expression that is searched for anywhere in a text.

    Args:
        text: The expression, as ``re`` understands it.
        what: What it is for, for messages: ``"body"``.

    Raises:
        UsageError: It is none, or it needs a Python interpreter and this program is frozen into one file.
    """

    def __init__(self, text: str, what: str) -> None:
        try:
            self._compiled = re.compile(text)
        except re.error as error:
            raise UsageError(f"{what}: {text!r} is not a regular expression: {error}") from error
        self._text = text
        self._what = what
        self._plain = not _REPETITION.search(_HARMLESS.sub("", text))
        if not self._plain and (getattr(sys, "frozen", False) or not sys.executable):
            raise UsageError(
                f"{what}: {text!r} repeats something (* + ? {{), and to look for that without a risk takes a "
                "Python interpreter, which this program does not have; write plain words, and | between them"
            )

    def __str__(self) -> str:
        return f'"{clipped(one_line(self._text), 60)}"'

    def found_in(self, texts: Sequence[str], timeout: float) -> list[bool]:
        """Say for each of ``texts`` whether the pattern is in it. Blocks: call it in a thread.

        Args:
            texts: Where to look.
            timeout: Seconds for all of them.

        Raises:
            HostError: It took longer, or no process can be started.
        """
        if self._plain or not texts:
            return [self._compiled.search(text) is not None for text in texts]
        asked = "\0".join(one.replace("\0", " ") for one in (self._text, *texts))
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                input=asked.encode("utf-8", "surrogatepass"),
                capture_output=True,
                timeout=timeout,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except subprocess.TimeoutExpired:
            raise HostError(
                f"to search for the {self._what} {self} takes longer than {seconds(timeout)}; write a "
                "simpler expression: less to repeat, nothing repeated inside of something repeated"
            ) from None
        except OSError as error:
            raise HostError(f"cannot start {sys.executable}: {error.strerror}") from error
        answers = done.stdout.split()
        if done.returncode != 0 or len(answers) != len(texts):
            told = one_line(done.stderr.decode(errors="replace")[-200:]) or f"exit code {done.returncode}"
            raise HostError(f"to search for the {self._what} {self} failed: {told}")
        return [answer == b"1" for answer in answers]
