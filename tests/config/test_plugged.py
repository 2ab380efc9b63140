"""Plug-ins in a configuration: a vendor's package that is installed, the example's above all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.config_support import SHOP, changed, write
from tests.plugin_support import install, install_example, site_directory

from nlbfarm.checkers import build
from nlbfarm.config import FarmConfig, config_digest, dump, load
from nlbfarm.config.checkers import PluginChecker
from nlbfarm.config.loading import examine
from nlbfarm.errors import PluginError, UsageError

DISK = """
[[checkers]]
name = "disk"
type = "disk-space"
interval = "1m"

[checkers.options]
path = "/"
free_percent = 0
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with site_directory(tmp_path / "site") as directory:
        install_example(directory)
        yield directory


def problems(directory: Path, text: str) -> list[str]:
    return [str(problem) for problem in examine(write(directory, text)).problems]


@pytest.mark.posix("paths that begin with a slash")
async def test_the_example_is_loaded_through_a_configuration(site: Path, tmp_path: Path) -> None:
    config = load(write(tmp_path, SHOP + DISK))
    entry = config.checkers[1]
    assert isinstance(entry, PluginChecker)
    assert (entry.interval.total_seconds(), entry.rise, entry.fall) == (60, 1, 2)
    checker = build(entry)
    result = await checker.check()
    assert result.ok
    assert "% of / is free" in result.detail
    await checker.close()

    full = build(entry.model_copy(update={"options": {"path": "/", "free_percent": 100}}))
    assert not (await full.check()).ok
    lost = build(entry.model_copy(update={"options": {"path": str(tmp_path / "gone")}}))
    assert "No such file" in (await lost.check()).detail


@pytest.mark.posix("paths that begin with a slash")
def test_what_the_page_on_plug_ins_shows(site: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    build(load(write(tmp_path, f"{SHOP}\n{shown}")).checkers[1])
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(compile(program, "docs/plugins.md", "exec"), {})


def test_two_of_one_plug_in_each_with_its_options(site: Path, tmp_path: Path) -> None:
    more = DISK.replace('"disk"', '"other"').replace("free_percent = 0", "free_percent = 50")
    config = load(write(tmp_path, SHOP + DISK + more))
    found = [entry.options["free_percent"] for entry in config.checkers if isinstance(entry, PluginChecker)]
    assert found == [0, 50]
    assert FarmConfig.model_validate(dump(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            "free_percent = 0",
            "free_bytes = 0",
            PluginError,
            r'checker "disk": acme_nlbfarm\.DiskSpaceChecker .* cannot be made: TypeError: .*\bfree_bytes\b',
        ),
        ('path = "/"', "", PluginError, r'checker "disk": .*missing .*\bpath\b'),
        ('path = "/"', "path = 5", UsageError, "path must be an absolute path, not 5"),
    ],
)
def test_options_that_the_class_does_not_accept(
    site: Path, tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    config = load(write(tmp_path, SHOP + changed((old, new), text=DISK)))
    with pytest.raises(error, match=message):
        build(config.checkers[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"disk-space"', '"disk-spaces"'),
            'checkers[1].type: "disk-spaces" is not known, nor installed; write "tcp" or "http" or "ping"',
        ),
        (('type = "disk-space"', ""), 'checkers[1].type: missing; write "tcp" or "http" or "ping" or '),
        (('interval = "1m"', 'path = "/"'), "checkers[1].path: unknown key"),
        (('interval = "1m"', "fall = 0"), "checkers[1].fall: 0 is out of range"),
        (
            ('[checkers.options]\npath = "/"\nfree_percent = 0', "options = 5"),
            "checkers[1].options: 5 is not a table",
        ),
    ],
)
def test_what_is_wrong_with_an_entry(
    site: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    (found,) = problems(tmp_path, SHOP + changed(change, text=DISK))
    assert found.startswith(message)


def test_a_plug_in_may_have_a_name_that_others_give_a_type_of_ours(site: Path, tmp_path: Path) -> None:
    install(site, "acme-disk", "[nlbfarm.checkers]\ndisk = acme_disk:Disk\n")
    assert problems(tmp_path, SHOP + changed(('"disk-space"', '"disk"'), text=DISK)) == []


def test_two_packages_with_one_name(site: Path, tmp_path: Path) -> None:
    install(site, "acme-two", "[nlbfarm.checkers]\ndisk-space = acme_two:X\n")
    (found,) = problems(tmp_path, SHOP + DISK)
    assert found.startswith('checkers[1].type: two packages bring "disk-space" for nlbfarm.checkers: ')


def test_without_the_package_the_configuration_is_wrong_in_every_way_to_make_one(tmp_path: Path) -> None:
    assert [found.split(";")[0] for found in problems(tmp_path, SHOP + DISK)] == [
        'checkers[1].type: "disk-space" is not known, nor installed'
    ]
    data = dump(load(write(tmp_path, SHOP)))
    data["checkers"] = [{"name": "disk", "type": "disk-space"}]
    with pytest.raises(
        ValidationError, match=r'"disk-space" is not known, nor installed for nlbfarm\.checkers'
    ):
        FarmConfig.model_validate(data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            '[filter]\nvip_manager = "linus"',
            'filter.vip_manager: "linus" is not known, nor installed for nlbfarm.vips; write "auto" or',
        ),
        ("[filter]\nvip_manager = 1", 'filter.vip_manager: 1 is not a word; write "auto" or "linux"'),
        (
            '[filter]\nbackend = "memory"\nvip_manager = "linux"',
            'filter: the backend "memory" filters no packet',
        ),
        ("[filter]\nqueues = 17", "filter.queues: 17 is out of range; a number of queues is from 1 to 16"),
        (
            '[filter]\nbucket_function = "acme"',
            'filter.bucket_function: "acme" names no function; write "package.module:name"',
        ),
        ("[filter]\nbucket_function = 7", "filter.bucket_function: 7 names no function"),
        (
            '[filter]\nbackend = "nftables"\nbucket_function = "acme.farm:bucket"',
            'filter: the backend "nftables" knows no bucket function but its own; write backend = "nfqueue"',
        ),
        ('[filter]\nudp_idle = "0s"', 'filter.udp_idle: "0s" is out of range; write a time from "1s"'),
    ],
)
def test_filter(tmp_path: Path, keys: str, message: str) -> None:
    (found,) = problems(tmp_path, f"{SHOP}\n{keys}\n")
    assert found.startswith(message)


def test_transport(site: Path, tmp_path: Path) -> None:
    def with_transport(name: str) -> str:
        return changed(("[heartbeat]\n", f'[heartbeat]\ntransport = "{name}"\n'))

    (found,) = problems(tmp_path, with_transport("serial"))
    assert found.startswith(
        'heartbeat.transport: "serial" is not known, nor installed for nlbfarm.heartbeats; write "udp"'
    )
    install(site, "acme-serial", "[nlbfarm.heartbeats]\nserial = acme_serial:Serial\n")
    digests = [config_digest(load(write(tmp_path, text))) for text in (SHOP, with_transport("udp"))]
    assert digests[0] == digests[1]
    assert config_digest(load(write(tmp_path, with_transport("serial")))) != digests[0]
    local = f'{SHOP}\n[filter]\nvip_manager = "memory"\n'
    assert config_digest(load(write(tmp_path, local))) == digests[0]


def test_nodes_agree_on_a_bucket_function(tmp_path: Path) -> None:
    def digest(keys: str) -> bytes:
        return config_digest(load(write(tmp_path, f"{SHOP}\n[filter]\n{keys}\n")))

    own = {digest(f'bucket_function = "{name}"') for name in ("", "acme.farm:bucket", "acme.farm:other")}
    assert len(own) == 3
    assert digest('queues = 4\nudp_idle = "5s"\nbackend = "nfqueue"') in own
