"""Opening a connection for a look, and saying what went wrong in an administrator's words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address

from nlbfarm.checkers.threads import OwnThread
from nlbfarm.checkers.words import seconds

__all__ = ["Target"]


class Target:
    """A TCP port to connect to.

    Args:
        host: Name or address.
        port: TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._resolver = OwnThread(f"nlbfarm-resolve {host}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @contextlib.asynccontextmanager
    async def connected(
        self, tls: ssl.SSLContext | None = None, name: str = ""
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect, and leave no socket behind however the block is left.

        Every address of the host is tried, in the resolver's order. The connection is aborted, not shut
        down in order: a look, and one that is cancelled, does not wait for a peer that hangs.

        Args:
            tls: With this context, TLS.
            name: Whom to ask TLS for (SNI), and whose certificate to expect; the host if empty.

        Raises:
            OSError: It cannot be opened (the first address's error); ``went_wrong`` puts it in words.
        """
        reader, writer = await self._connect(tls, name or self.host)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await asyncio.shield(writer.wait_closed())

    async def _connect(
        self, tls: ssl.SSLContext | None, name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that answers; asyncio alone would blend the errors of several."""
        first: OSError | None = None
        for address in await self._addresses():
            try:
                return await asyncio.open_connection(
                    address, self.port, ssl=tls, server_hostname=name if tls is not None else None
                )
            except OSError as error:
                first = first or error
        raise first or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    async def _addresses(self) -> Sequence[str]:
        try:
            return [str(ip_address(self.host))]
        except ValueError:
            pass
        # Not the event loop's own: it would ask in the executor that everybody shares (checkers.threads).
        found = await self._resolver.run(
            lambda: socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    def unresolved(self, timeout: float) -> str:
        """Say what a look waited for that was cut off after ``timeout`` seconds, if it was for the name."""
        late = self._resolver.late(timeout)
        return late and f"cannot resolve {self.host}: {late}"

    def went_wrong(self, error: OSError, timeout: float) -> str:
        """Return one line on why the target could not be reached or did not go on.

        Args:
            error: What was raised; a ``TimeoutError`` of ``asyncio.timeout`` as well.
            timeout: Seconds that the look had.
        """
        if isinstance(error, TimeoutError) and error.errno is None:  # the kernel's own has a number
            return self.unresolved(timeout) or f"no answer from {self} within {seconds(timeout)}"
        if isinstance(error, socket.gaierror):
            return f"cannot resolve {self.host}: {error.strerror}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {self} is not valid: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"no TLS with {self}: {error.reason or error}"
        if isinstance(error, ConnectionRefusedError):
            return f"connection refused by {self}"
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return f"connection reset by {self}"
        return f"cannot reach {self}: {os.strerror(error.errno) if error.errno else error}"

    def close(self) -> None:
        """End the thread that resolves the name."""
        self._resolver.close()
