"""The checker ``http`` with TLS: who is asked for, who is trusted."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.checkers.certificates import issue
from tests.checkers.support import LONG, OK, answering, look, server

from nlbfarm.checkers import HttpChecker
from nlbfarm.interfaces import CheckResult


class Site:
    """A server's side of TLS, and what it was asked for."""

    def __init__(self, directory: Path) -> None:
        issued = issue("shop", "shop.example", "127.0.0.1")
        self.asked: list[str | None] = []
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(issued.pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(issued.write(directory / "server.pem"))
        self.context.sni_callback = lambda _, name, __: self.asked.append(name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def ask(site: Site, url: str, **options: Any) -> tuple[str, CheckResult]:
    """Look at ``url``, with the server's port in it."""
    async with server(answering(OK), site.context) as port:
        url = url.replace("PORT", str(port))
        return url, await look(HttpChecker(url, timeout=LONG, **options))


async def test_https(site: Site) -> None:
    url, result = await ask(site, "https://127.0.0.1:PORT/", ca_file=str(site.ca_file))
    assert result == CheckResult(True, f"HTTP 200 from {url}")
    context = ssl.create_default_context(cafile=str(site.ca_file))
    assert (await ask(site, "https://127.0.0.1:PORT/", tls=context))[1].ok


async def test_https_certificate_that_nobody_trusts(site: Site) -> None:
    _, result = await ask(site, "https://127.0.0.1:PORT/")
    assert not result.ok
    assert result.detail.startswith("the certificate of 127.0.0.1:")
    assert " is not valid: self" in result.detail
    assert (await ask(site, "https://127.0.0.1:PORT/", verify=False))[1].ok


async def test_https_name_of_the_url_at_another_address(site: Site) -> None:
    options = {"address": "127.0.0.1", "ca_file": str(site.ca_file)}
    url, result = await ask(site, "https://shop.example:PORT/", **options)
    assert result == CheckResult(True, f"HTTP 200 from {url} (at 127.0.0.1)")
    assert site.asked == ["shop.example"]
    _, wrong = await ask(site, "https://bank.example:PORT/", **options)
    assert "is not valid: Hostname mismatch" in wrong.detail


async def test_https_name_that_is_given(site: Site) -> None:
    options = {"host": "shop.example:443", "ca_file": str(site.ca_file)}
    assert (await ask(site, "https://127.0.0.1:PORT/", **options))[1].ok
    assert site.asked == ["shop.example"]


async def test_https_certificates_that_cannot_be_read(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    for name, why in (
        ("gone.pem", "cannot be read: No such file or directory"),
        ("empty.pem", "holds no cert"),
    ):
        url, result = await ask(site, "https://127.0.0.1:PORT/", ca_file=str(tmp_path / name))
        assert not result.ok
        assert result.detail.startswith(f"{url}: ca_file {tmp_path / name} {why}")


async def test_https_where_nobody_speaks_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with server(plain) as port:
        result = await look(HttpChecker(f"https://127.0.0.1:{port}/", timeout=LONG))
    assert not result.ok
    assert result.detail.startswith(f"no TLS with 127.0.0.1:{port}: ")
