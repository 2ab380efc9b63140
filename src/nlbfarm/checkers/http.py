"""Is a page answered?

asyncio's streams carry the bytes and h11 understands them. h11 is a strict HTTP/1.1 parser without
dependencies, in pure Python: a full client (httpx, aiohttp) would bring five to ten packages into
every node for one GET, and ``http.client`` needs a thread, which nobody can cancel when the server
hangs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import h11

from nlbfarm.checkers.connecting import connection, seconds, went_wrong
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["HttpChecker"]

_HEADERS = 32 * 1024  # bytes of the answer's head, at most
_BODY = 1 << 20  # bytes of the answer's body that are waited for
_READ = 65536


class HttpChecker(Checker):
    """Gets a URL: healthy if the status is one of those wanted and the answer is complete.

    Redirects are not followed: an answer of 302 is an answer with status 302. Of a body of more than
    1 MiB the first is read. With ``https``, the certificate is checked as a browser would.

    Args:
        url: What to get, ``http://`` or ``https://``.
        status: Statuses that are healthy.
        host: ``Host`` header; the URL's if empty.
        timeout: Seconds after which a look has failed.
        tls: How certificates are checked; by default as the host does.

    Raises:
        UsageError: ``url`` is no URL of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        status: Collection[int] = range(200, 400),
        host: str = "",
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f'{url!r} is no URL of HTTP; write "http://127.0.0.1/health"')
        self._url = url
        self._status = frozenset(status)
        self._timeout = timeout
        self._address = parts.hostname
        self._tls = None
        if parts.scheme == "https":
            self._tls = tls if tls is not None else ssl.create_default_context()
        self._port = parts.port or (443 if self._tls is not None else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._request = h11.Request(
                method="GET",
                target=target.encode("ascii"),
                headers=[
                    ("Host", host or parts.netloc.rpartition("@")[2]),
                    ("User-Agent", "nlbfarm-checker"),
                    ("Accept", "*/*"),
                    ("Connection", "close"),
                ],
            )
        except (UnicodeEncodeError, h11.LocalProtocolError) as error:
            raise UsageError(f"{url!r} cannot be asked for: {error}; write it percent-encoded") from error

    @classmethod
    def from_config(cls, config: Any) -> HttpChecker:
        """Return the checker for an entry with ``url``, ``status`` and ``timeout``."""
        return cls(config.url, status=config.status, timeout=config.timeout.total_seconds())

    async def check(self) -> CheckResult:
        began: list[int] = []
        try:
            async with asyncio.timeout(self._timeout):
                status = await self._get(began)
        except h11.RemoteProtocolError as error:
            return CheckResult(False, f"no valid HTTP from {self._url}: {error}")
        except TimeoutError as error:
            if error.errno is None:  # ours; the kernel's own has a number
                what = f"HTTP {began[0]} without its end" if began else "no answer"
                return CheckResult(False, f"{what} from {self._url} within {seconds(self._timeout)}")
            return CheckResult(False, went_wrong(error, self._address, self._port))
        except OSError as error:
            return CheckResult(False, went_wrong(error, self._address, self._port))
        return CheckResult(status in self._status, f"HTTP {status} from {self._url}")

    async def _get(self, began: list[int]) -> int:
        """Ask once and return the status when the body is here too, or enough of it.

        ``began`` is given the status as soon as it is known.
        """
        machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS)
        async with connection(self._address, self._port, tls=self._tls) as (reader, writer):
            writer.write((machine.send(self._request) or b"") + (machine.send(h11.EndOfMessage()) or b""))
            body = 0
            while True:
                event = machine.next_event()
                if event is h11.NEED_DATA:
                    machine.receive_data(await reader.read(_READ))
                elif isinstance(event, h11.Response):
                    began.append(event.status_code)
                elif isinstance(event, h11.Data):
                    body += len(event.data)
                    if body > _BODY:
                        return began[0]
                elif isinstance(event, h11.EndOfMessage):
                    return began[0]
                elif isinstance(event, h11.ConnectionClosed):
                    raise h11.RemoteProtocolError("the connection was closed without an answer")
