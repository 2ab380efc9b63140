"""Wait for the end of a process, and on Windows keep one of its handles open beyond that.

A WinDivert filter lives as long as its handle, and a handle as long as any process has a copy of it. The copy
is why a killed loop leaves no gap on Windows.
"""

from __future__ import annotations

import select
import sys

from nlbfarm.errors import HostError

if sys.platform == "win32":
    import ctypes
    import ctypes.wintypes

    _SYNCHRONIZE, _DUP_HANDLE, _DUPLICATE_SAME_ACCESS = 0x00100000, 0x0040, 2  # winnt.h
    _KERNEL = ctypes.WinDLL("kernel32", use_last_error=True)
    _KERNEL.OpenProcess.restype = _KERNEL.GetCurrentProcess.restype = ctypes.wintypes.HANDLE
    _KERNEL.WaitForSingleObject.argtypes = [ctypes.wintypes.HANDLE, ctypes.wintypes.DWORD]
    _KERNEL.CloseHandle.argtypes = [ctypes.wintypes.HANDLE]
    _KERNEL.DuplicateHandle.argtypes = [
        ctypes.wintypes.HANDLE,
        ctypes.wintypes.HANDLE,
        ctypes.wintypes.HANDLE,
        ctypes.POINTER(ctypes.wintypes.HANDLE),
        ctypes.wintypes.DWORD,
        ctypes.wintypes.BOOL,
        ctypes.wintypes.DWORD,
    ]
else:
    import os

__all__ = ["ProcessWatch"]


class ProcessWatch:
    """Waits for the end of another process, and on Windows has a copy of one of its handles.

    Args:
        pid: Its id; the process must be there.
        handle: The handle to copy, as the process knows it; ``None``: none.

    Raises:
        HostError: The process is not there.
    """

    def __init__(self, pid: int, handle: int | None = None) -> None:
        self._copy = None
        try:
            if sys.platform == "win32":
                self._handle = _KERNEL.OpenProcess(_SYNCHRONIZE | _DUP_HANDLE, False, pid)
                if not self._handle:
                    raise ctypes.WinError(ctypes.get_last_error())
                if handle is not None:
                    self._copy = self._duplicate(handle)
            else:
                self._descriptor = os.pidfd_open(pid)
        except OSError as error:
            raise HostError(f"windivert: the process with pid {pid} cannot be watched: {error}") from error

    def ended(self, within: float) -> bool:
        """Wait at most ``within`` seconds for its end; returns whether it has ended."""
        if sys.platform == "win32":
            return bool(_KERNEL.WaitForSingleObject(self._handle, int(within * 1000)) == 0)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def close(self) -> None:
        """Let go of it."""
        if sys.platform == "win32":
            self.let_go()
            _KERNEL.CloseHandle(self._handle)
        else:
            os.close(self._descriptor)

    def let_go(self) -> None:
        """Close the copy of the handle: if the process is gone, what the handle held back passes."""
        if sys.platform == "win32" and self._copy is not None:
            _KERNEL.CloseHandle(self._copy)
            self._copy = None

    if sys.platform == "win32":

        def _duplicate(self, handle: int) -> ctypes.wintypes.HANDLE | None:
            copy = ctypes.wintypes.HANDLE()
            done = _KERNEL.DuplicateHandle(
                self._handle,
                ctypes.wintypes.HANDLE(handle),
                _KERNEL.GetCurrentProcess(),
                ctypes.byref(copy),
                0,
                False,
                _DUPLICATE_SAME_ACCESS,
            )
            return copy if done else None
