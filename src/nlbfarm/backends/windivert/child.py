"""Where the processes of this backend begin (``channel.Worker`` starts them)."""

from __future__ import annotations

import os
import sys

from nlbfarm.backends.windivert.channel import standard_channel

__all__ = ["main"]


def main(role: str) -> None:
    """Be the loop or the guard until told to end; never returns.

    Args:
        role: ``"loop"`` or ``"guard"``.
    """
    channel = standard_channel()
    code = 1
    try:
        if role == "loop":
            from nlbfarm.backends.windivert.loop import Loop

            Loop(channel).run()
        else:
            from nlbfarm.backends.windivert.guard import Guard

            Guard(channel).run()
        code = 0
    except BaseException:  # noqa: BLE001 - told, and then the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)  # a thread may still wait in a read that nothing interrupts
