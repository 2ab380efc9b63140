"""Opening a connection for a look, and saying what went wrong in an administrator's words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator

__all__ = ["connection", "seconds", "went_wrong"]


@contextlib.asynccontextmanager
async def connection(
    host: str, port: int, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and leave no socket behind however the block is left.

    Every address of ``host`` is tried, in the resolver's order. The connection is aborted, not shut
    down in order: a look, and one that is cancelled, does not wait for a peer that hangs.

    Args:
        host: Name or address.
        port: TCP port.
        tls: With this context, TLS.

    Raises:
        OSError: It cannot be opened (the first address's error); ``went_wrong`` puts it in words.
    """
    reader, writer = await _connect(host, port, tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await asyncio.shield(writer.wait_closed())


async def _connect(
    host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first address that answers; asyncio alone would blend the errors of several."""
    name = host if tls is not None else None
    first: OSError | None = None
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        try:
            return await asyncio.open_connection(str(address[0]), port, ssl=tls, server_hostname=name)
        except OSError as error:
            first = first or error
    raise first or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))


def went_wrong(error: OSError, host: str, port: int) -> str:
    """Return one line on why ``host`` could not be reached or did not go on."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"cannot resolve {host}: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {where} is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {where}: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused by {where}"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return f"connection reset by {where}"
    return f"cannot reach {where}: {os.strerror(error.errno) if error.errno else error}"


def seconds(duration: float) -> str:
    """Return ``duration`` in seconds as people write it: ``"5 s"``, ``"0.5 s"``."""
    return f"{duration:g} s"
