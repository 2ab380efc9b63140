"""The documentation says what is so: examples load, commands and make targets exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nlbfarm.cli import cli
from nlbfarm.config.keys import generate
from nlbfarm.config.loading import examine

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command line of the documentation that starts ``program``: where it is, its arguments."""
    for page in PAGES:
        for block in code_blocks(page, "(?:console|sh|shell|bash)"):
            for line in block.splitlines():
                words = shlex.split(line.removeprefix("$ ").removeprefix("# "), comments=True)
                words = words[: words.index(">")] if ">" in words else words
                if words and Path(words[0]).name == program:
                    yield f"{page.relative_to(ROOT)}: {line.strip()}", words[1:]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise, on Python 3.11
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_loads(example: Path, tmp_path: Path) -> None:
    copy = tmp_path / example.name
    shutil.copy(example, copy)
    text = example.read_text(encoding="utf-8")
    key_file = re.search(r'^key_file = "([^"/]+)"', text, re.MULTILINE)
    assert key_file is not None, "an example's key file lies beside it"
    generate(tmp_path / key_file[1])
    for name in re.findall(r'^targets_file = "([^"/]+)"', text, re.MULTILINE):
        (tmp_path / name).write_text("mailto://user:password@mail.example.com?to=ops@example.com\n")
        (tmp_path / name).chmod(0o600)
    examined = examine(copy)
    assert examined.problems == ()
    assert examined.warnings == ()
    assert examined.config is not None


def test_there_is_an_example() -> None:
    assert EXAMPLES


def test_readme_shows_the_example_as_it_is() -> None:
    blocks = code_blocks(ROOT / "README.md", "toml")
    text = (ROOT / "examples" / "two-servers-apache.toml").read_text(encoding="utf-8")
    directive, _, rest = text.partition("\n")
    assert directive.startswith("#:schema ")  # for an editor, where the schema is beside it
    assert blocks == [rest]


@pytest.mark.parametrize(("where", "arguments"), list(commands("nlbfarm-node")))
def test_documented_command_exists(where: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb exists and understands the arguments as they stand; nothing is run."""
    with click.Context(cli, info_name="nlbfarm-node") as context:
        name, verb, rest = cli.resolve_command(context, list(arguments))
        assert verb is not None
        for parameter in verb.params:  # files that are named need not be on this machine
            if isinstance(parameter.type, click.Path):
                monkeypatch.setattr(parameter, "type", click.STRING)
        verb.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("where", "arguments"), list(commands("make")))
def test_documented_target_exists(where: str, arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in arguments if "=" not in word]
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_programs_run(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_file_runs_a_command_that_exists() -> None:
    text = (ROOT / "examples" / "nlbfarm-node.service").read_text(encoding="utf-8")
    words = next(line for line in text.splitlines() if line.startswith("ExecStart=")).split()[1:]
    command = cli.commands[words[0]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
