"""From a configuration's entry to a checker, and what is missing for it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.checkers.support import OK, answering, look, server

from nlbfarm.checkers import CertificateChecker, HttpChecker, TcpChecker, build
from nlbfarm.config.checkers import HttpChecker as HttpEntry
from nlbfarm.config.checkers import TcpChecker as TcpEntry
from nlbfarm.errors import HostError, PluginError


@dataclass
class Plugged:
    """An entry for a plug-in."""

    type: str
    name: str = "page"
    timeout: timedelta = timedelta(seconds=1)
    options: dict[str, Any] = field(default_factory=dict)


async def test_without_a_view_of_the_node() -> None:
    async with server(answering(OK)) as port:
        tcp = build(TcpEntry.model_validate({"name": "t", "port": port}))
        http = build(HttpEntry.model_validate({"name": "h", "url": f"http://127.0.0.1:{port}/"}))
        assert isinstance(tcp, TcpChecker)
        assert isinstance(http, HttpChecker)
        assert (await look(tcp)).ok
        assert (await look(http)).ok


def test_a_type_that_is_not_installed() -> None:
    with pytest.raises(PluginError, match=r'nothing called "pong" is installed for nlbfarm.checkers'):
        build(Plugged("pong"))


def test_without_the_package_for_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HostError, match=r'pip install "nlbfarm\[certificate\]"'):
        CertificateChecker(file=tmp_path)
