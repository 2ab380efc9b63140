"""Is a page answered, and is it the right one?

asyncio's streams carry the bytes and h11 understands them. h11 is a strict HTTP/1.1 parser without
dependencies, in pure Python: a full client (httpx, aiohttp) would bring five to ten packages into
every node for one GET, and ``http.client`` needs a thread, which nobody can cancel when the server
hangs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from nlbfarm.checkers.connecting import Target
from nlbfarm.checkers.patterns import Pattern
from nlbfarm.checkers.threads import OwnThread
from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import seconds
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["HttpChecker"]

_HEADERS = 32 * 1024  # bytes of the answer's head, at most
_BODY = 1 << 20  # bytes of the answer's body that are waited for
_SEARCHED = 256 * 1024  # bytes of it that are searched
_READ = 65536


@dataclass(slots=True)
class _Answer:
    """As much of an answer as there is."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    length: int = 0


class HttpChecker(Checker):
    """Gets a URL: healthy if the status is one of those wanted and the answer is complete.

    Redirects are not followed: an answer of 302 is an answer with status 302. Of a body of more than
    1 MiB the first is read.

    Args:
        url: What to get, ``http://`` or ``https://``.
        status: Statuses that are healthy.
        body: A regular expression that has to be found in the first 256 KiB of the body, read as UTF-8; empty
            for none.
        address: Connect to this address, whatever host the URL names: loopback, or the virtual IP.
        host: ``Host`` header, and with TLS the name that is asked for and has to be the certificate's; the
            URL's if empty.
        verify: With ``https``: whether the certificate is checked, as a browser would.
        ca_file: Certificates (PEM) of those who may have signed it, instead of those that the host trusts.
        timeout: Seconds after which a look has failed.
        tls: How certificates are checked, instead of ``verify`` and ``ca_file``.

    Raises:
        UsageError: ``url`` is no URL of HTTP, or ``body`` no regular expression.
    """

    def __init__(
        self,
        url: str,
        *,
        status: Collection[int] = range(200, 400),
        body: str = "",
        address: str = "",
        host: str = "",
        verify: bool = True,
        ca_file: str = "",
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f'{url!r} is no URL of HTTP; write "http://127.0.0.1/health"')
        self._url = url
        self._status = frozenset(status)
        self._body = Pattern(body, "body") if body else None
        self._timeout = timeout
        self._secure = parts.scheme == "https"
        self._verify, self._ca_file, self._tls = verify, ca_file, tls
        self._target = Target(address or parts.hostname, parts.port or (443 if self._secure else 80))
        self._name = (urlsplit(f"//{host}").hostname or "") if host else parts.hostname
        self._thread = OwnThread(f"nlbfarm-http {parts.hostname}")
        self._via = f" (at {address})" if address and address != parts.hostname else ""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._request = h11.Request(
                method="GET",
                target=target.encode("ascii"),
                headers=[
                    ("Host", host or parts.netloc.rpartition("@")[2]),
                    ("User-Agent", "nlbfarm-checker"),
                    ("Accept", "*/*"),
                    ("Accept-Encoding", "identity"),
                    ("Connection", "close"),
                ],
            )
        except (UnicodeEncodeError, h11.LocalProtocolError) as error:
            raise UsageError(f"{url!r} cannot be asked for: {error}; write it percent-encoded") from error

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> HttpChecker:
        """Return the checker for an entry of type ``http``."""
        return cls(
            config.url,
            status=config.status,
            body=config.body or "",
            address=str(config.address or ""),
            host=config.host or "",
            verify=config.verify,
            ca_file=str(config.ca_file or ""),
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        answer = _Answer()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        try:
            async with asyncio.timeout_at(end):
                await self._get(answer)
                return await self._judge(answer, end - loop.time())
        except h11.RemoteProtocolError as error:
            return CheckResult(False, f"no valid HTTP from {self._url}{self._via}: {error}")
        except HostError as error:
            return CheckResult(False, f"{self._url}: {error}")
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                return CheckResult(False, self._late(answer))
            return CheckResult(False, self._target.went_wrong(error, self._timeout))

    async def close(self) -> None:
        self._target.close()
        self._thread.close()

    async def _get(self, answer: _Answer) -> None:
        """Ask once; return when the body is here too, or enough of it."""
        machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS)
        if self._secure and self._tls is None:
            # Reads the certificates that the host trusts: tens of milliseconds, or for ever from a dead disk.
            self._tls = await self._thread.run(self._context)
        async with self._target.connected(self._tls, self._name) as (reader, writer):
            writer.write((machine.send(self._request) or b"") + (machine.send(h11.EndOfMessage()) or b""))
            while True:
                event = machine.next_event()
                if event is h11.NEED_DATA:
                    machine.receive_data(await reader.read(_READ))
                elif isinstance(event, h11.Response):
                    answer.status = event.status_code
                elif isinstance(event, h11.Data):
                    answer.length += len(event.data)
                    if self._body is not None:
                        answer.body += event.data[: _SEARCHED - len(answer.body)]
                    if answer.length > _BODY:
                        return
                elif isinstance(event, h11.EndOfMessage):
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    raise h11.RemoteProtocolError("the connection was closed without an answer")

    async def _judge(self, answer: _Answer, left: float) -> CheckResult:
        """Say whether the answer is the one that is wanted; ``left`` is how many seconds that may take."""
        told = f"HTTP {answer.status} from {self._url}{self._via}"
        body = self._body
        if answer.status not in self._status or body is None:
            return CheckResult(answer.status in self._status, told)
        text = answer.body.decode("utf-8", "replace")
        (found,) = await self._thread.run(lambda: body.found_in([text], left))
        if found:
            return CheckResult(True, f"{told}, with {body} in the body")
        where = "the body" if answer.length <= _SEARCHED else f"the first {_SEARCHED >> 10} KiB of the body"
        return CheckResult(False, f"{told}, but {where} has no {body}")

    def _late(self, answer: _Answer) -> str:
        """Say what a look waited for whose time has run out."""
        waits = self._target.unresolved(self._timeout)
        if waits:
            return waits
        thread = self._thread.late(self._timeout)
        if thread:
            what = f"the search for the body {self._body}" if answer.status else "the trusted certificates"
            return f"{self._url}: {what}: {thread}"
        what = f"HTTP {answer.status} without its end" if answer.status else "no answer"
        return f"{what} from {self._url}{self._via} within {seconds(self._timeout)}"

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file or None)
        except ssl.SSLError as error:
            raise HostError(f"ca_file {self._ca_file} holds no certificate in PEM: {error.reason}") from error
        except OSError as error:
            raise HostError(f"ca_file {self._ca_file} cannot be read: {error.strerror}") from error
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
