"""Real servers on loopback that messages are sent to: a web server, a mail server, and one that hangs."""

from __future__ import annotations

import http.server
import json
import queue
import socket
import socketserver
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from types import TracebackType
from typing import Any, Self

__all__ = ["HangingServer", "MailServer", "WebServer"]

SECONDS = 10.0


class _Server:
    """Runs a ``socketserver`` in a thread."""

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self.port: int = server.socket.getsockname()[1]
        self._thread = threading.Thread(target=server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(SECONDS)
        self._server.server_close()


class WebServer(_Server):
    """Answers POST with the status that is next in ``statuses``, or 200, and keeps what it was sent."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.statuses: list[int] = []
        self.authorizations: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 200
                outer.authorizations.append(self.headers.get("Authorization"))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                outer.got.put((self.path, json.loads(body)))

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                pass

        super().__init__(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    def next(self) -> dict[str, Any]:
        """Return the next message."""
        return self.got.get(timeout=SECONDS)[1]


class MailServer(_Server):
    """As much of SMTP (RFC 5321) as a client needs to get rid of a message."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[list[str], EmailMessage]] = queue.Queue()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 sink\r\n")
                recipients: list[str] = []
                while line := self.rfile.readline():
                    verb = line[:4].upper()
                    if verb == b"QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    if verb == b"RCPT":
                        recipients.append(line.decode().partition("<")[2].partition(">")[0])
                    if verb == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        lines = []
                        while (text := self.rfile.readline()) not in (b".\r\n", b""):
                            lines.append(text.removeprefix(b"."))
                        message = message_from_bytes(b"".join(lines), policy=policy.default)
                        outer.got.put((recipients, message))
                        recipients = []
                    self.wfile.write(b"250 ok\r\n")

        super().__init__(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler))


class HangingServer:
    """Takes connections, and never says a word."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
