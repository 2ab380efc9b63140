"""Targets by their URLs, through apprise; the extra ``notify`` brings it, and only they need it.

A URL is made of secrets: passwords, tokens, addresses. None of it is shown but the scheme, and the host where
that is a host and not a part of the secret.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import threading
from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from nlbfarm.events import Severity
from nlbfarm.notify.message import DeliveryError, Message, Target

if TYPE_CHECKING:
    from apprise import Apprise

__all__ = ["MISSING", "AppriseTarget", "problem", "redacted"]

MISSING = "needs the package apprise; install the extra: pip install 'nlbfarm[notify]'"

# Elsewhere what stands in the place of the host may be a token (tgram://, slack://, discord://).
_TELLING = re.compile(r"(http|json|xml|form|mailto|gotify|apprise|mqtt)s?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")
_WEBHOOKS = {"http": "json", "https": "jsons"}
_SHORTEST_SECRET = 4


def redacted(url: str) -> str:
    """Return what may be shown of a target's URL: ``"mailto://mail.example.com"``, ``"tgram://..."``."""
    scheme = _SCHEME.match(url)
    if scheme is None:
        return "..."
    host = _host(url)
    return f"{scheme[0].lower()}{host or '...'}"


def _host(url: str) -> str:
    """Return the host that a URL names, or ``""`` if it may be something else."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return ""
    # With a "/", "?" or "#" in the password that is not quoted, what looks like the host is a part of it.
    user_lies_behind = "@" not in parts.netloc and "@" in url
    cut_short = any(
        "@" in part.partition("=")[0] for part in (parts.path, *parts.query.split("&"), parts.fragment)
    )
    if not _TELLING.fullmatch(parts.scheme) or user_lies_behind or cut_short:
        return ""
    return f"[{host}]" if ":" in host else host


def scrubbed(text: str, url: str) -> str:
    """Return ``text`` without anything that stands in ``url``, but for its scheme and its host."""
    host = _host(url)
    pieces = set(re.split(r"[/:@?&=#,;]+", url.partition("://")[2]))
    pieces |= {unquote(piece) for piece in pieces}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) >= _SHORTEST_SECRET and piece != host:
            text = text.replace(piece, "***")
    return text


def problem(url: str) -> str | None:
    """Return what is wrong with a target's URL, or ``None``; it shows no secret. Imports apprise."""
    if _SCHEME.match(url) is None:
        return 'a target is a URL, like "mailto://user:password@mail.example.com?to=ops@example.com"'
    if importlib.util.find_spec("apprise") is None:
        return f"{redacted(url)} {MISSING}"
    with _overhearing() as said:
        service = _service(url)
    if service is None:
        why = scrubbed("; ".join(line for line in said if "URL" not in line), url)
        return f"{redacted(url)} is not a target that apprise knows{f' ({why})' if why else ''}"
    return None


class AppriseTarget(Target):
    """A target that apprise knows: mail, a webhook, a chat.

    What begins with ``http://`` or ``https://`` and is no service that apprise knows by its address gets what
    ``json://`` and ``jsons://`` get: a POST of JSON.

    Args:
        url: Its URL.
    """

    def __init__(self, url: str) -> None:
        self.name = redacted(url)
        self._url = url
        self._service: Apprise | None = None

    def send(self, message: Message) -> None:
        with _overhearing() as said:
            try:
                arrived = self._notify(message)
            except ModuleNotFoundError:
                raise DeliveryError(MISSING) from None
            except Exception as error:  # noqa: BLE001 - of a hundred services, written by many hands
                raise DeliveryError(scrubbed(f"{type(error).__name__}: {error}", self._url)) from None
        if not arrived:
            why = " ".join(scrubbed("; ".join(said), self._url).split())
            raise DeliveryError(why or "apprise does not say why")

    def _notify(self, message: Message) -> bool:
        from apprise import NotifyFormat, NotifyType

        kinds = {
            Severity.INFO: NotifyType.INFO,
            Severity.WARNING: NotifyType.WARNING,
            Severity.ERROR: NotifyType.FAILURE,
        }
        if self._service is None:
            self._service = _service(self._url)
        if self._service is None:
            raise DeliveryError("apprise does not know this target")
        return bool(
            self._service.notify(
                title=message.subject,
                body=message.body,
                notify_type=kinds[message.severity],
                body_format=NotifyFormat.TEXT,
            )
        )


def _service(url: str) -> Apprise | None:
    """Return what sends to ``url``, or ``None`` if apprise does not know it."""
    from apprise import Apprise, AppriseAsset

    # Since 2.0 it gives up waiting after a minute, and sends in a pool of threads for that: those that hang
    # would fill it for all targets, and keep the process from ending. Here each target has its own thread.
    options: dict[str, Any] = {"app_id": "nlbfarm", "app_desc": "nlbfarm", "app_url": "", "async_mode": False}
    if "service_timeout" in signature(AppriseAsset).parameters:
        options["service_timeout"] = 0
    asset = AppriseAsset(**options)
    for spelling in (url, _webhook(url)):
        plugin = Apprise.instantiate(spelling, asset=asset) if spelling else None
        if plugin is not None:
            service = Apprise(asset=asset)
            service.add(plugin)
            return service
    return None


def _webhook(url: str) -> str:
    """Return the URL of a web page as one that apprise posts JSON to; ``""`` if it is none."""
    scheme, _, rest = url.partition("://")
    kind = _WEBHOOKS.get(scheme.lower())
    if kind is None:
        return ""
    address, _, query = rest.partition("#")[0].partition("?")
    # With a "-" it is a parameter for the other side, without one for apprise.
    passed = "&".join(f"-{part}" for part in query.split("&") if part)
    return f"{kind}://{address}" + (f"?{passed}" if passed else "")


class _Overheard(logging.Filter):
    """Keeps what apprise logs on threads of ours: the cause of a failure, and not for the log as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, list[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        lines = self.lines.get(threading.get_ident())
        if lines is None:
            return True
        if record.levelno >= logging.WARNING:
            lines.append(record.getMessage())
        return False


_overheard = _Overheard()


@contextlib.contextmanager
def _overhearing() -> Iterator[list[str]]:
    """Gather what apprise logs on this thread meanwhile."""
    logging.getLogger("apprise").addFilter(_overheard)  # once is enough, and it is there once only
    lines = _overheard.lines[threading.get_ident()] = []
    try:
        yield lines
    finally:
        del _overheard.lines[threading.get_ident()]
