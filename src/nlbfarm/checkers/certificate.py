"""Does a certificate expire soon?"""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlbfarm.checkers.connecting import Target
from nlbfarm.checkers.threads import BlockingChecker
from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import many, one_line
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["CertificateChecker"]

_LARGEST = 1 << 20  # bytes of a file of certificates
_PEM = b"-----BEGIN CERTIFICATE-----"


class CertificateChecker(BlockingChecker):
    """Looks at the dates of certificates: healthy if all are valid now and for some time to come.

    Args:
        file: A file with certificates in PEM (all of them are looked at, a private key is not) or one in DER.
        server: Name or address of a server to ask for its certificates instead.
        port: Its TCP port.
        server_name: The name that it is asked for (SNI); ``server`` if empty.
        expires_within: One that ends within this time is no longer healthy.
        timeout: Seconds after which a look has failed.

    Raises:
        UsageError: Neither a file nor a server is given, or both.
        HostError: The package ``cryptography`` is not installed.
    """

    def __init__(
        self,
        *,
        file: Path | None = None,
        server: str = "",
        port: int = 443,
        server_name: str = "",
        expires_within: timedelta = timedelta(days=14),
        timeout: float = 5.0,
    ) -> None:
        if (file is None) == (not server):
            raise UsageError("certificate: write either file or address, to say where the certificate is")
        if importlib.util.find_spec("cryptography") is None:
            raise HostError(
                'the checker type "certificate" needs the package cryptography, which is not installed here: '
                'pip install "nlbfarm[certificate]"'
            )
        self._target = Target(server, port) if server else None
        self._where = str(file) if file is not None else str(self._target)
        super().__init__(self._where, timeout)
        self._file = file
        self._name = server_name
        self._expires_within = expires_within

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> CertificateChecker:
        """Return the checker for an entry of type ``certificate``."""
        return cls(
            file=config.file,
            server=str(config.address or ""),
            port=config.port,
            server_name=config.server_name or "",
            expires_within=config.expires_within,
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        if self._target is None:
            return await self.within(self._look_at_file)
        end = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(end):
                found = await self._ask(self._target)
        except OSError as error:
            return CheckResult(False, self._target.went_wrong(error, self._timeout))
        return await self.within(partial(self._judge, found), end)

    async def close(self) -> None:
        await super().close()
        if self._target is not None:
            self._target.close()

    async def _ask(self, target: Target) -> Sequence[bytes]:
        """Return the certificates that a server shows, its own first: Python before 3.13 tells no others."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # To be looked at, not trusted: one that has expired is an answer, too.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        async with target.connected(context, self._name) as (_, writer):
            session = writer.get_extra_info("ssl_object")
            if hasattr(session, "get_unverified_chain"):
                chain: Sequence[bytes] = session.get_unverified_chain()
                return chain
            own = session.getpeercert(binary_form=True)
            return [own] if own else []

    def _look_at_file(self) -> CheckResult:
        assert self._file is not None
        try:
            with self._file.open("rb") as file:
                content = file.read(_LARGEST)
        except OSError as error:
            return CheckResult(False, f"{self._file} cannot be read: {error.strerror}")
        return self._judge([content])

    def _judge(self, found: Sequence[bytes]) -> CheckResult:
        try:
            certificates = [one for content in found for one in _parse(content)]
        except ValueError as error:
            return CheckResult(False, f"{self._where} holds no certificate: {one_line(str(error), 80)}")
        if not certificates:
            return CheckResult(False, f"{self._where} shows no certificate")
        now = datetime.now(UTC)
        latest = max(certificates, key=lambda one: one.not_valid_before_utc)
        first = min(certificates, key=lambda one: one.not_valid_after_utc)
        if latest.not_valid_before_utc > now:
            begins = f"{latest.not_valid_before_utc:%Y-%m-%d %H:%M} UTC (is this host's clock right?)"
            return CheckResult(False, f"{_name(latest)} in {self._where} is not valid before {begins}")
        ends, left = first.not_valid_after_utc, first.not_valid_after_utc - now
        when = f"on {ends:%Y-%m-%d %H:%M} UTC"
        if left <= timedelta(0):
            return CheckResult(False, f"{_name(first)} in {self._where} expired {_span(-left)} ago, {when}")
        told = f"{_name(first)} in {self._where} expires in {_span(left)}, {when}"
        if left < self._expires_within:
            return CheckResult(False, f"{told}; renew it {_span(self._expires_within)} before")
        return CheckResult(True, told)


def _parse(content: bytes) -> Sequence[Certificate]:
    """Return the certificates in PEM or the one in DER.

    Raises:
        ValueError: There is none.
    """
    from cryptography import x509  # an extra

    if _PEM in content:
        return x509.load_pem_x509_certificates(content)
    return [x509.load_der_x509_certificate(content)]


def _name(certificate: Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = names[0].value if names else certificate.subject.rfc4514_string()
    return f'certificate "{one_line(str(name), 60)}"' if name else "a certificate without a name"


def _span(time: timedelta) -> str:
    """Return a time in days, or in hours if it is less than two."""
    if time >= timedelta(days=2):
        return many(time.days, "day")
    return many(round(time / timedelta(hours=1)), "hour")
