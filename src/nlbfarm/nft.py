"""libnftables in process: run nft scripts as one atomic transaction each, without starting a program.

Shared by the filter backend and the VIP manager, which do not import each other. A call costs well
under a millisecond for small changes, where the ``nft`` program costs 14 to 22 ms. The calls
block: run them off the event loop.

Source: ``nftables/libnftables.h`` and libnftables(3).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import socket
import threading
from typing import Any

from nlbfarm.errors import HostError

__all__ = ["Nft", "NftError"]

_NETLINK_NETFILTER = 12  # linux/netlink.h
_CTX_DEFAULT = 0
_OUTPUT_STATELESS = 1 << 2
_OUTPUT_HANDLE = 1 << 3
_OUTPUT_JSON = 1 << 4
_OUTPUT_NUMERIC_ALL = (1 << 7) | (1 << 8) | (1 << 9)


class NftError(HostError):
    """The kernel or libnftables refused a script; nothing of it was applied.

    Args:
        message: What to tell an administrator.
        detail: The library's own words, which name the place in the script.
    """

    def __init__(self, message: str, detail: str) -> None:
        self.detail = detail
        super().__init__(message)


# The library keeps static state in places: one call at a time in a process, whatever the context.
_LOCK = threading.Lock()


@functools.cache
def _library() -> Any:
    """Load libnftables and declare the functions used here."""
    name = ctypes.util.find_library("nftables") or "libnftables.so.1"
    try:
        lib = ctypes.CDLL(name)
    except OSError as error:
        raise HostError(
            "the library libnftables is not on this host; install it "
            "(Debian, Ubuntu: apt install libnftables1; Fedora, RHEL: dnf install nftables-libs)"
        ) from error
    context = ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nft_ctx_new": (context, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [context]),
        "nft_ctx_buffer_output": (ctypes.c_int, [context]),
        "nft_ctx_buffer_error": (ctypes.c_int, [context]),
        "nft_ctx_get_output_buffer": (ctypes.c_char_p, [context]),
        "nft_ctx_get_error_buffer": (ctypes.c_char_p, [context]),
        "nft_ctx_output_set_flags": (None, [context, ctypes.c_uint]),
        "nft_ctx_set_dry_run": (None, [context, ctypes.c_bool]),
        "nft_run_cmd_from_buffer": (ctypes.c_int, [context, ctypes.c_char_p]),
    }
    try:
        for symbol, (result, arguments) in signatures.items():
            function = getattr(lib, symbol)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as error:
        raise HostError(
            f"{name} is too old for nlbfarm ({error}); nftables 0.9.1 or newer is needed"
        ) from error
    return lib


class Nft:
    """One libnftables context.

    It acts in the network namespace of the thread that constructs it. Its methods may be called
    from any thread; a lock lets one at a time into the library.

    Raises:
        HostError: The library is missing or too old, or the kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        self._context: Any = None
        self._lib = _library()
        try:
            # The library calls exit() where it cannot open this socket: find out before it does.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
        except OSError as error:
            raise HostError(
                f"this kernel offers no netfilter over netlink ({error}); nf_tables is needed"
            ) from error
        with _LOCK:
            self._context = self._lib.nft_ctx_new(_CTX_DEFAULT)
        if not self._context:
            raise HostError("libnftables cannot make a context: out of memory")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def run(self, script: str, *, json: bool = False, stateless: bool = False, dry_run: bool = False) -> str:
        """Run one script as one transaction and return what it printed.

        Args:
            script: Commands in nft's language (or its JSON, with ``json``).
            json: Print (and read) JSON.
            stateless: Leave counters and timeouts out of listings.
            dry_run: Check the script, change nothing.

        Raises:
            NftError: It was refused, and nothing of it was applied. ``detail`` has the library's words.
            HostError: The right to do this is missing, or the object was closed.
        """
        flags = _OUTPUT_NUMERIC_ALL | _OUTPUT_HANDLE if json else _OUTPUT_NUMERIC_ALL
        if json:
            flags |= _OUTPUT_JSON
        if stateless:
            flags |= _OUTPUT_STATELESS
        with _LOCK:
            if not self._context:
                raise HostError("the nftables context is closed")
            self._lib.nft_ctx_output_set_flags(self._context, flags)
            self._lib.nft_ctx_set_dry_run(self._context, dry_run)
            code = self._lib.nft_run_cmd_from_buffer(self._context, script.encode())
            output = (self._lib.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
            errors = (self._lib.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        problem = errors.strip()
        if code == 0:
            return output
        first = problem.splitlines()[0] if problem else f"libnftables returned {code}"
        if "Operation not permitted" in problem or "Permission denied" in problem:
            raise HostError(
                f"no right to change nftables ({first}); run as root or with the capability CAP_NET_ADMIN"
            )
        if "Protocol not supported" in problem or "Operation not supported" in problem:
            raise NftError(f"this kernel lacks an nftables feature that nlbfarm needs: {first}", problem)
        raise NftError(f"nftables refused a change: {first}", problem)

    def close(self) -> None:
        """Free the context; calls afterwards raise ``HostError``. May be called twice."""
        with _LOCK:
            if self._context:
                self._lib.nft_ctx_free(self._context)
                self._context = None
