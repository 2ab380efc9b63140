"""The checker ``certificate``: files and servers, with certificates made for the purpose."""

from __future__ import annotations

import re
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.checkers.certificates import DAY, Issued, issue
from tests.checkers.support import LONG, SHORT, hang, look, server

from nlbfarm.checkers import CertificateChecker, build
from nlbfarm.config.checkers import CertificateChecker as Entry
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

DATE = r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC"
MINUTE = timedelta(minutes=1)


async def see(directory: Path, content: bytes, **options: Any) -> tuple[str, CheckResult]:
    path = directory / "shop.pem"
    path.write_bytes(content)
    return re.escape(str(path)), await look(CertificateChecker(file=path, timeout=LONG, **options))


def told(result: CheckResult, ok: bool, pattern: str) -> None:
    assert result.ok is ok
    assert re.fullmatch(pattern, result.detail), result.detail


async def test_a_file_in_pem_and_der(tmp_path: Path) -> None:
    one = issue("shop.example", ends=20 * DAY + MINUTE)
    for content in (one.pem, one.der, one.key_pem + one.pem):
        path, result = await see(tmp_path, content)
        told(result, True, rf'certificate "shop\.example" in {path} expires in 20 days, {DATE}')


async def test_one_that_expires_soon(tmp_path: Path) -> None:
    one = issue("shop.example", ends=13 * DAY + MINUTE)
    path, result = await see(tmp_path, one.pem)
    ends = rf'certificate "shop\.example" in {path} expires in 13 days, {DATE}'
    told(result, False, f"{ends}; renew it 14 days before")
    told((await see(tmp_path, one.pem, expires_within=12 * DAY))[1], True, ends)
    path, result = await see(tmp_path, issue("", ends=DAY + MINUTE).pem, expires_within=DAY)
    told(result, True, rf"a certificate without a name in {path} expires in 24 hours, {DATE}")


async def test_one_that_has_expired_or_not_begun(tmp_path: Path) -> None:
    old = issue("old", begins=-9 * DAY, ends=-3 * DAY - MINUTE)
    path, result = await see(tmp_path, old.pem)
    told(result, False, rf'certificate "old" in {path} expired 3 days ago, {DATE}')
    early = issue("early", begins=DAY)
    path, result = await see(tmp_path, early.pem)
    told(
        result,
        False,
        rf'certificate "early" in {path} is not valid before {DATE[3:]} \(is this .* clock right\?\)',
    )


async def test_of_a_chain_the_first_that_ends_counts(tmp_path: Path) -> None:
    authority = issue("authority", ends=5 * DAY + MINUTE)
    leaf = issue("shop", by=authority)
    path, result = await see(tmp_path, leaf.pem + authority.pem)
    told(result, False, rf'certificate "authority" in {path} expires in 5 days, .*')


async def test_files_without_a_certificate(tmp_path: Path) -> None:
    for content in (b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path, result = await see(tmp_path, content)
        told(result, False, rf"{path} holds no certificate: .*")
    gone = await look(CertificateChecker(file=tmp_path / "gone.pem"))
    assert gone == CheckResult(False, f"{tmp_path / 'gone.pem'} cannot be read: No such file or directory")


class Site:
    """A server's side of TLS, and what it was asked for."""

    def __init__(self, issued: Issued, directory: Path) -> None:
        self.asked: list[str | None] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(issued.write(directory / "server.pem"))
        self.context.sni_callback = lambda _, name, __: self.asked.append(name)


async def test_of_a_server(tmp_path: Path) -> None:
    """Nobody needs to trust it, and one that has expired is looked at, too."""
    for days, ok in ((20, True), (3, False), (-3, False)):
        site = Site(issue("shop", begins=-9 * DAY, ends=days * DAY + MINUTE), tmp_path)
        async with server(hang, site.context) as port:
            result = await look(
                CertificateChecker(server="127.0.0.1", port=port, server_name="shop.example", timeout=LONG)
            )
        assert site.asked == ["shop.example"]
        told(result, ok, rf'certificate "shop" in 127\.0\.0\.1:{port} expire.*')


async def test_servers_that_show_none(free_port: int) -> None:
    refused = await look(CertificateChecker(server="127.0.0.1", port=free_port))
    assert refused == CheckResult(False, f"connection refused by 127.0.0.1:{free_port}")
    async with server(hang) as port:
        hanging = await look(CertificateChecker(server="127.0.0.1", port=port, timeout=SHORT))
    assert hanging == CheckResult(False, f"no answer from 127.0.0.1:{port} within 0.2 s")


async def test_from_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "shop.pem").write_bytes(issue("shop", ends=20 * DAY).pem)
    entry = {"name": "tls", "type": "certificate"}
    file = Entry.model_validate(entry | {"file": str(tmp_path / "shop.pem"), "expires_within": "30d"})
    result = await look(build(file))
    assert not result.ok
    assert result.detail.endswith("renew it 30 days before")
    assert isinstance(build(Entry.model_validate(entry | {"address": "192.0.2.1"})), CertificateChecker)


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    for options in ({}, {"file": tmp_path, "server": "127.0.0.1"}):
        with pytest.raises(UsageError, match="either file or address"):
            CertificateChecker(**options)  # type: ignore[arg-type]
