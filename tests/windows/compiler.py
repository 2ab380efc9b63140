"""WinDivert's own filter compiler and interpreter: what the driver would say of a packet.

``WinDivertHelperCompileFilter`` and ``WinDivertHelperEvalFilter`` of ``WinDivert64.dll`` (WinDivert
documentation, "WinDivertHelperEvalFilter") need no driver, so they work in Wine.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
from functools import cache
from pathlib import Path

__all__ = ["FLOW", "NETWORK", "Filter", "FilterError"]

NETWORK, FLOW = 0, 2  # WINDIVERT_LAYER

_OUTBOUND, _LOOPBACK, _IPV6 = 1 << 17, 1 << 18, 1 << 20  # of WINDIVERT_ADDRESS
_ADDRESS = struct.Struct("<qIIII56x")
_INVALID_PARAMETER = 87  # winerror.h
_OBJECT_BYTES = 1 << 16


class FilterError(Exception):
    """The compiler does not take the filter."""


class Filter:
    """A compiled filter.

    Args:
        expression: The filter string.
        layer: ``NETWORK`` or ``FLOW``.

    Raises:
        FilterError: It is no filter, or too long.
    """

    def __init__(self, expression: str, layer: int = NETWORK) -> None:
        compiled = ctypes.create_string_buffer(_OBJECT_BYTES)
        message, position = ctypes.c_char_p(), ctypes.c_uint()
        if not _dll().WinDivertHelperCompileFilter(
            expression.encode("ascii"),
            layer,
            compiled,
            len(compiled),
            ctypes.byref(message),
            ctypes.byref(position),
        ):
            said = (message.value or b"no reason given").decode()
            raise FilterError(f"{said} (at {position.value} of {expression[:200]!r})")
        self._compiled = compiled.value

    def matches(
        self, data: bytes, version: int, interface: int, *, outbound: bool = False, loopback: bool = False
    ) -> bool | None:
        """Say whether the filter matches a packet; ``None`` if WinDivert's parser takes it for no packet.

        Args:
            data: From the IP header on.
            version: 4 or 6, as its frame says.
            interface: Index of the interface it arrives on, or leaves by.
            outbound, loopback: What the driver says of it otherwise.
        """
        flags = NETWORK | _OUTBOUND * outbound | _LOOPBACK * loopback | _IPV6 * (version == 6)
        address = _ADDRESS.pack(0, flags, 0, interface, 0)
        _set_last_error(0)
        if _dll().WinDivertHelperEvalFilter(self._compiled, data, len(data), address):
            return True
        return None if _last_error() == _INVALID_PARAMETER else False


@cache
def _dll() -> ctypes.CDLL:
    found = importlib.util.find_spec("pydivert")
    assert found is not None, "pydivert is not installed"
    assert found.origin is not None
    dll = ctypes.CDLL(
        str(Path(found.origin).parent / "windivert_dll" / "WinDivert64.dll"), use_last_error=True
    )
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    dll.WinDivertHelperCompileFilter.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        pointer,
        number,
        pointer,
        pointer,
    ]
    dll.WinDivertHelperEvalFilter.argtypes = [ctypes.c_char_p, ctypes.c_char_p, number, ctypes.c_char_p]
    return dll


def _last_error() -> int:
    if sys.platform != "win32":
        raise OSError("this is not Windows")
    return ctypes.get_last_error()


def _set_last_error(number: int) -> None:
    if sys.platform != "win32":
        raise OSError("this is not Windows")
    ctypes.set_last_error(number)
