"""A binding to the host's libnftables: run an nft script in this process, as one transaction.

libnftables is loaded from the operating system at run time; nlbfarm neither ships nor links it
(``docs/decisions/0002-libnftables.md``). Only the handful of functions of its stable C interface
(``nftables/libnftables.h``, ``libnftables(3)``) that are needed are declared here.
"""

from __future__ import annotations

import ctypes
import json
import socket
import threading
from typing import Any

from nlbfarm.errors import HostError

__all__ = ["LIBRARY", "Nft", "NftError"]

LIBRARY = "libnftables.so.1"
"""Name of the library, with the version of its interface."""

_NETLINK_NETFILTER = 12  # linux/netlink.h
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON

_PLACE = 120  # characters of a script's line in a message

# The library parses with static state in places (counters, symbol tables): one call at a time in a process.
_LOCK = threading.Lock()


class NftError(HostError):
    """The kernel or libnftables refused a script; nothing of it was done.

    Args:
        message: What the library said, one line.
        permission: ``True`` if a right was missing.
    """

    def __init__(self, message: str, *, permission: bool = False) -> None:
        self.permission = permission
        super().__init__(message)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HostError(
            f"{LIBRARY} cannot be loaded ({error}): install it (Debian, Ubuntu: apt install libnftables1; "
            "Fedora, RHEL: dnf install nftables)"
        ) from error
    context = ctypes.c_void_p
    for name, result, arguments in (
        ("nft_ctx_new", context, (ctypes.c_uint32,)),
        ("nft_ctx_free", None, (context,)),
        ("nft_ctx_buffer_output", ctypes.c_int, (context,)),
        ("nft_ctx_buffer_error", ctypes.c_int, (context,)),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, (context,)),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, (context,)),
        ("nft_ctx_output_set_flags", None, (context, ctypes.c_uint)),
        ("nft_ctx_set_dry_run", None, (context, ctypes.c_bool)),
        ("nft_run_cmd_from_buffer", ctypes.c_int, (context, ctypes.c_char_p)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class Nft:
    """One libnftables context: a netlink socket and its buffers.

    Shared by the packet filter and the VIP manager, which do not import each other.

    Its calls block, for as long as the kernel takes to commit; ctypes releases the interpreter
    lock meanwhile. It is in the network namespace of the thread that made it.

    Raises:
        HostError: The library is not there, or the kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        self._library = _load()
        try:
            # nft_ctx_new calls exit(3) when it cannot open its socket, so find that out first.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
        except OSError as error:
            raise HostError(
                f"this kernel offers no netfilter over netlink ({error}): nf_tables is needed"
            ) from error
        with _LOCK:
            self._context: Any = self._library.nft_ctx_new(0)
            if not self._context:
                raise HostError(f"{LIBRARY} could not be started: out of memory")
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> None:
        """Do everything in ``script``, or nothing of it, in one transaction.

        Raises:
            NftError: It was refused; nothing was changed.
        """
        self._run(script, 0)

    def check(self, script: str) -> None:
        """Let the kernel look ``script`` over without doing it.

        Raises:
            NftError: It would be refused.
        """
        with _LOCK:
            self._library.nft_ctx_set_dry_run(self._context, True)
        try:
            self._run(script, 0)
        finally:
            with _LOCK:
                self._library.nft_ctx_set_dry_run(self._context, False)

    def read(self, script: str) -> list[dict[str, Any]]:
        """Run a ``list`` command and return its objects (``libnftables-json(5)``).

        Raises:
            NftError: It was refused.
        """
        output = self._run(script, _OUTPUT_JSON)
        objects: list[dict[str, Any]] = json.loads(output)["nftables"] if output else []
        return objects

    def close(self) -> None:
        """Free the context; may be called twice."""
        with _LOCK:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def _run(self, script: str, flags: int) -> bytes:
        with _LOCK:
            if not self._context:
                raise NftError("the libnftables context is closed")
            self._library.nft_ctx_output_set_flags(self._context, flags)
            failed = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
            # The buffers belong to the context and are emptied by the next call: copy both.
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
            error: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise _error(error.decode(errors="replace"))
        return output


def _error(text: str) -> NftError:
    """Make one line of the library's words: its first error, and the piece of the script that it marks."""
    lines = text.splitlines() or ["no reason given"]
    index = next((number for number, line in enumerate(lines) if "rror" in line), 0)
    _, _, message = lines[index].partition("Error: ")
    message = message or lines[index]
    if "Operation not permitted" in text:
        return NftError(
            f"nftables: {message}: changing packet filters needs root or the capability CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)",
            permission=True,
        )
    place = lines[index + 1].strip()[:_PLACE] if len(lines) > index + 1 else ""
    return NftError(f"nftables: {message}{f' (in: {place})' if place else ''}")
