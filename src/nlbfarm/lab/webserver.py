"""The lab's built-in web server: serves the files of one directory from memory, and keeps connections alive.

``python -m nlbfarm.lab.webserver PORT DIRECTORY``; for hosts without Apache and nginx, and for quick
tests. Not for anything else: it understands GET and as much of HTTP/1.1 as the lab's clients and checkers
speak. While there is a file ``ill`` beside the directory, it answers 503 to everything, with the first page.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from nlbfarm.lab.servers import ILL

__all__ = ["listen", "main"]

_BACKLOG = 1024
_LONGEST_HEAD = 16_384


class _Connection(asyncio.Protocol):
    def __init__(self, pages: Mapping[bytes, bytes], ill: Path) -> None:
        self._pages = pages
        self._ill = ill
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._pending += data
        while b"\r\n\r\n" in self._pending:
            head, self._pending = self._pending.split(b"\r\n\r\n", 1)
            first, *fields = head.split(b"\r\n")
            parts = first.split()
            if len(parts) != 3 or parts[0] != b"GET":
                self._transport.write(
                    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
                self._transport.close()
                return
            headers = {
                name.strip().lower(): value.strip().lower()
                for name, _, value in (f.partition(b":") for f in fields)
            }
            default = b"close" if parts[2] == b"HTTP/1.0" else b"keep-alive"
            keep = headers.get(b"connection", default) == b"keep-alive"
            body = self._pages.get(parts[1])
            status = b"404 Not Found" if body is None else b"200 OK"
            body = b"not found\n" if body is None else body
            if self._ill.exists():
                status, body = b"503 Service Unavailable", self._pages[b"/"]
            self._transport.write(
                b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s"
                % (status, len(body), b"keep-alive" if keep else b"close", body)
            )
            if not keep:
                self._transport.close()
                return
        if len(self._pending) > _LONGEST_HEAD:
            self._transport.close()


async def listen(host: str, port: int, directory: Path) -> asyncio.Server:
    """Serve the files of ``directory``, ``index.html`` also as ``/``, until the server is closed.

    Raises:
        ValueError: The first page is empty.
    """
    pages = {b"/" + path.name.encode(): path.read_bytes() for path in directory.iterdir()}
    pages[b"/"] = pages[b"/index.html"]
    if not pages[b"/"]:
        raise ValueError(f"{directory}/index.html is empty: there is nothing to serve")
    loop = asyncio.get_running_loop()
    ill = directory.with_name(ILL)
    return await loop.create_server(lambda: _Connection(pages, ill), host, port, backlog=_BACKLOG)


async def _serve(port: int, directory: Path) -> None:
    server = await listen("", port, directory)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    try:
        asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
