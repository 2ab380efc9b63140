"""From an entry of the configuration to a service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.config_support import SHOP, write
from tests.plugin_support import install, site_directory
from tests.services.support import context

from nlbfarm.config.loading import load
from nlbfarm.config.services import Service as Entry
from nlbfarm.errors import PluginError
from nlbfarm.interfaces import Service
from nlbfarm.services import CommandService, ScriptsService, SystemdService, WindowsService, build


def entry(directory: Path, text: str) -> Entry:
    (found,) = load(write(directory, f'{SHOP}\n[[services]]\nname = "app"\n{text}')).services
    return found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('systemd = "apache2"', SystemdService),
        ('windows = "W3SVC"', WindowsService),
        pytest.param(
            'command = ["/usr/sbin/acme", "-f"]\nuser = "acme"\nstop_signal = "SIGQUIT"',
            CommandService,
            marks=pytest.mark.posix("the keeper, a Linux process"),
        ),
        ('[services.scripts]\nstart = ["/opt/start"]\nstop = ["/opt/stop"]', ScriptsService),
    ],
)
async def test_ours(tmp_path: Path, text: str, kind: type[Service]) -> None:
    before = sorted(os.listdir(tmp_path))
    service = build(entry(tmp_path, text), context(tmp_path))
    assert type(service) is kind
    await service.close()
    assert set(os.listdir(tmp_path)) - set(before) <= {"shop.toml", "shop.key"}  # nothing was done yet


@pytest.mark.posix("the keeper, a Linux process")
async def test_what_is_configured_arrives(tmp_path: Path) -> None:
    text = (
        'command = ["/usr/sbin/acme", "-f"]\nuser = "acme"\nstop_signal = "SIGQUIT"\nstop_timeout = "5s"\n'
        'outlive = true\ndirectory = "data"\nenvironment = { LANG = "C" }\n'
    )
    service = build(entry(tmp_path, text), context(tmp_path))
    assert isinstance(service, CommandService)
    command = service._runner._command  # type: ignore[attr-defined]
    assert (command.argv, command.user, command.stop_signal) == (("/usr/sbin/acme", "-f"), "acme", "SIGQUIT")
    assert (command.stop_timeout, command.outlive, command.directory) == (5.0, True, tmp_path / "data")
    assert command.environment == {"LANG": "C"}


async def test_a_vendors(tmp_path: Path) -> None:
    with site_directory(tmp_path / "site") as site:
        install(
            site,
            "acme-farm",
            "[nlbfarm.services]\nacme = acme_farm:AcmeService\n",
            "from nlbfarm.interfaces import CheckResult, Service\n"
            "class AcmeService(Service):\n"
            "    def __init__(self, context, *, port): self.seen = (context.service, port)\n"
            "    async def start(self, reason): pass\n"
            "    async def stop(self, reason): pass\n"
            "    async def running(self): return CheckResult(True, 'fine')\n",
        )
        service = build(entry(tmp_path, 'type = "acme"\noptions = { port = 1 }'), context(tmp_path))
        assert service.seen == ("app", 1)  # type: ignore[attr-defined]
        with pytest.raises(PluginError, match=r'service "app": .* cannot be made: TypeError'):
            build(entry(tmp_path, 'type = "acme"\noptions = { speed = 1 }'), context(tmp_path))
