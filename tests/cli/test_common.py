"""The command line as a whole: exit codes, documentation, which farm is meant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.config_support import changed, write

from nlbfarm.api.control import NodeNotRunningError
from nlbfarm.cli import cli
from nlbfarm.cli.common import Exit, Verbs, find_farm
from nlbfarm.errors import (
    AddressInUseError,
    ConfigError,
    HostError,
    NlbfarmError,
    PluginError,
    Problem,
    UsageError,
)
from nlbfarm.instance import AlreadyRunningError

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NlbfarmError("x"), 1),
        (UsageError("x"), 2),
        (click.UsageError("x"), 2),
        (ConfigError("f", [Problem("a.b", "x")]), 3),
        (HostError("x"), 4),
        (AddressInUseError("x"), 4),
        (PluginError("x"), 4),
        (NodeNotRunningError("x"), 5),
        (AlreadyRunningError("x"), 6),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    @click.group(cls=Verbs)
    def group() -> None:
        pass

    @group.command()
    def verb() -> int:
        raise error

    result = CliRunner().invoke(group, ["verb"])
    assert result.exit_code == code
    assert "x" in result.stderr
    assert result.stdout == ""


def test_what_a_verb_returns_is_the_exit_code() -> None:
    @click.group(cls=Verbs)
    def group() -> None:
        pass

    @group.command()
    def verb() -> int:
        return 1

    assert CliRunner().invoke(group, ["verb"]).exit_code == 1


def test_every_exit_code_is_documented() -> None:
    listed = re.findall(r"^\| (\d+) \| ", PAGE, re.MULTILINE)
    assert [int(code) for code in listed] == [code.value for code in Exit]


def test_every_verb_and_option_is_documented() -> None:
    for name, verb in cli.commands.items():
        assert f"nlbfarm-node {name}" in PAGE
        for option in verb.params:
            if isinstance(option, click.Option):
                assert max(option.opts, key=len) in PAGE, f"{name} {option.opts}"


def test_every_verb_has_a_help() -> None:
    runner = CliRunner()
    for name in cli.commands:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: cli {name}")


@pytest.mark.parametrize("arguments", [["statsu"], ["check"], ["run"], ["demo", "--nodes", "1"], []])
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def test_as_a_program() -> None:
    """As an administrator starts it; and as a module, for whoever has no script directory."""
    for program in (
        [str(Path(sys.executable).with_name("nlbfarm-node"))],
        [sys.executable, "-m", "nlbfarm.cli"],
    ):
        done = subprocess.run(
            [*program, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("nlbfarm-node, version ")


def test_reading_a_configuration_starts_no_netlink(tmp_path: Path) -> None:
    """A wrong configuration is told at once, and on hosts where the rest cannot even be imported."""
    source = (
        "import sys; from nlbfarm.cli import cli; cli(['check', sys.argv[1]], standalone_mode=False); "
        "sys.exit(', '.join(sorted({'pyroute2', 'scapy'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(write(tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_which_farm(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    assert find_farm(None, None, runtime) is None
    (runtime / "shop").mkdir(parents=True)
    assert find_farm(None, None, runtime) == "shop"
    assert find_farm("other", None, runtime) == "other"
    (runtime / "blog").mkdir()
    (runtime / "shop" / "control.sock").touch()
    assert find_farm(None, None, runtime) == "shop"  # blog left an empty directory
    (runtime / "blog" / "journal.json").touch()
    with pytest.raises(UsageError, match="several farms here; say which with --farm: blog, shop"):
        find_farm(None, None, runtime)
    config = write(tmp_path)
    assert find_farm(None, config, runtime) == "shop"
    with pytest.raises(UsageError, match="not both"):
        find_farm("shop", config, runtime)
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="is not the name of a farm"):
            find_farm(name, None, runtime)


def test_which_farm_is_known_even_when_the_rest_is_wrong(tmp_path: Path) -> None:
    """A member of control.group may not read the key file, and need not."""
    assert (
        find_farm(None, write(tmp_path, changed(("shop.key", "none.key"), ("id = 2", "id = 1"))), tmp_path)
        == "shop"
    )
    with pytest.raises(ConfigError):
        find_farm(None, write(tmp_path, changed(('name = "shop"', ""))), tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        find_farm(None, tmp_path / "none.toml", tmp_path)
