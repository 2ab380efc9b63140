"""``[events]`` and ``[notify]``: what is right, what is wrong and how it is said, and what is never shown."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nlbfarm.config.draft import field_reader
from nlbfarm.config.events import Events, format_size, parse_size
from nlbfarm.config.notify import DEFAULT_EVENTS, Notify, load_targets
from nlbfarm.config.types import Section
from nlbfarm.errors import ConfigError
from nlbfarm.events.model import Severity
from nlbfarm.events.sentences import EVENTS

# apprise imports a module that Python 3.13 has no more, and does without it there.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
needs_apprise = pytest.mark.skipif(
    importlib.util.find_spec("apprise") is None, reason="lack of the package apprise (the extra notify)"
)

MAIL = "mailto://user:secret@mail.example.com?to=ops@example.com"
PAGE = (Path(__file__).parent.parent.parent / "docs" / "events.md").read_text(encoding="utf-8")


def wrong(model: type[Section], **values: Any) -> list[tuple[str, str]]:
    """Return the path and the message of every error."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    assert "secret" not in str(caught.value)
    return [
        (".".join(map(str, one["loc"])), str(one["ctx"]["error"]))
        for one in caught.value.errors(include_url=False)
    ]


# -- [events] ------------------------------------------------------------------------------


def test_events() -> None:
    assert (Events().max_size, Events().files) == (1_000_000, 5)
    given = Events.model_validate({"max_size": "64KiB", "files": 2})
    assert given.max_size == 65536
    assert given.model_dump(mode="json") == {"max_size": "64KiB", "files": 2}
    assert Events().model_dump(mode="json") == {"max_size": "1MB", "files": 5}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10KB", 10_000),
        ("1.5MB", 1_500_000),
        ("1GB", 10**9),
        ("1KiB", 1024),
        (" 2 MiB ", 2**21),
        ("3GiB", 3 * 2**30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


def test_sizes_without_a_whole_unit_are_written_in_thousands() -> None:
    assert format_size(1_234_567) == "1234.567KB"
    assert parse_size("1234.567KB") == 1_234_567


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, 'a size needs a unit, in quotes: write "5KB" or "5MB"'),
        ("5", '"5" is not a size; write a number and a unit, like "500KB" or "1MB"'),
        ("5mb", '"5mb" is not a size; write a number and a unit, like "500KB" or "1MB"'),
        (True, 'true is not a size; write a number and a unit, like "500KB" or "1MB"'),
        ("1KB", '"1KB" is out of range; write a size from "10KB" to "100MB"'),
        ("1GB", '"1GB" is out of range; write a size from "10KB" to "100MB"'),
    ],
)
def test_wrong_sizes(value: object, message: str) -> None:
    assert wrong(Events, max_size=value) == [("max_size", message)]


def test_one_file_alone_would_lose_everything_at_once() -> None:
    assert wrong(Events, files=1) == [("files", "1 is out of range; a number of files is from 2 to 100")]


# -- [notify] ------------------------------------------------------------------------------


def test_defaults() -> None:
    notify = Notify()
    assert (notify.targets, notify.targets_file, notify.script) == ((), None, ())
    assert (notify.severity, notify.batch) == (Severity.WARNING, timedelta(minutes=1))
    assert notify.events == DEFAULT_EVENTS
    assert notify.everyone() == ()


@needs_apprise
def test_all_of_it(tmp_path: Path) -> None:
    given = {
        "targets": [MAIL, "https://hooks.example.com/secret"],
        "targets_file": "notify.urls",
        "script": ["/usr/local/bin/page-me", "--now"],
        "events": ["node.state", "service.*"],
        "severity": "error",
        "batch": "5m",
    }
    notify = Notify.model_validate(given, context={"base": tmp_path})
    assert notify.targets == (MAIL, "https://hooks.example.com/secret")
    assert notify.targets_file == tmp_path / "notify.urls"
    assert notify.severity is Severity.ERROR
    write(tmp_path / "notify.urls", "json://hooks.example.com/other\n")
    assert notify.everyone() == (*notify.targets, "json://hooks.example.com/other")


@needs_apprise
def test_secrets_are_in_no_dump_and_in_no_message() -> None:
    notify = Notify.model_validate(
        {"targets": [MAIL, "tgram://123456789:secretsecretsecretsecretsecretsecr/12345"]}
    )
    for text in (
        repr(notify),
        str(notify),
        json.dumps(notify.model_dump(mode="json")),
        notify.model_dump_json(),
    ):
        assert "secret" not in text
        assert "123456789" not in text
    assert notify.model_dump(mode="json")["targets"] == ["mailto://mail.example.com", "tgram://..."]
    assert wrong(Notify, targets=MAIL) == [("targets", 'must be a list: write it in brackets, ["..."]')]
    assert wrong(Notify, targets=[MAIL, "nonsense://user:secret@x", "secret", 5]) == [
        ("targets.1", "nonsense://... is not a target that apprise knows"),
        ("targets.2", 'a target is a URL, like "mailto://user:password@mail.example.com?to=ops@example.com"'),
        ("targets.3", 'a target is text, like "mailto://user:password@mail.example.com?to=ops@example.com"'),
    ]


def test_apprise_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    install = "install the extra: pip install 'nlbfarm[notify]'"
    told = f"mailto://mail.example.com needs the package apprise; {install}"
    assert wrong(Notify, targets=[MAIL]) == [("targets.0", told)]
    assert Notify(script=("/bin/true",)).script == ("/bin/true",)  # needs nothing


def test_events_that_nobody_knows() -> None:
    assert wrong(Notify, events=["peer.lots", "servce.*", "", 5]) == [
        (
            "events.0",
            'no event is called "peer.lots"; did you mean "peer.lost"? (docs/events.md has all of them)',
        ),
        (
            "events.1",
            'no event is called "servce.*"; did you mean "service.*"? (docs/events.md has all of them)',
        ),
        ("events.2", '"" is not the name of an event; write "peer.lost" or "service.*"'),
        ("events.3", '5 is not the name of an event; write "peer.lost" or "service.*"'),
    ]
    assert Notify(events=("*", "p??r.lost")).events == ("*", "p??r.lost")


def test_other_mistakes() -> None:
    assert wrong(Notify, severity="bad")[0][1].startswith('"bad" is not known; write "info" or "warning"')
    assert wrong(Notify, batch="1d")[0][1] == '"1d" is out of range; write a time from "1s" to "1h"'
    assert wrong(Notify, script=["", 5]) == [
        ("script.0", '"" is not a word of a command; write script = ["/usr/local/bin/page-me"]'),
        ("script.1", '5 is not a word of a command; write script = ["/usr/local/bin/page-me"]'),
    ]
    assert wrong(Notify, script="/bin/true") == [("script", 'must be a list: write it in brackets, ["..."]')]


def test_the_defaults_name_events_that_exist() -> None:
    assert Notify.model_validate({"events": list(DEFAULT_EVENTS)}).events == DEFAULT_EVENTS
    assert all("*" in name or name in EVENTS for name in DEFAULT_EVENTS)


# -- targets_file --------------------------------------------------------------------------


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_targets(path)
    assert "secret" not in str(caught.value).replace(str(path), "")
    return [str(problem) for problem in caught.value.problems]


@needs_apprise
def test_a_file_of_targets(tmp_path: Path) -> None:
    path = write(tmp_path / "notify.urls", f"# who is told\n\n  {MAIL}  \r\njson://hooks.example.com/#a\n")
    assert load_targets(path) == (MAIL, "json://hooks.example.com/#a")
    assert load_targets(write(tmp_path / "empty", "")) == ()


@needs_apprise
def test_lines_that_are_wrong_are_told_by_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "notify.urls", f"{MAIL}\nsecret\n\nnonsense://secret\n")
    assert problems(path) == [
        'line 2: a target is a URL, like "mailto://user:password@mail.example.com?to=ops@example.com"',
        "line 4: nonsense://... is not a target that apprise knows",
    ]


@pytest.mark.posix("file modes")
def test_others_may_read_it(tmp_path: Path) -> None:
    path = write(tmp_path / "notify.urls", "secret\n", 0o644)
    assert problems(path)[0] == f"mode 0644 lets others read the targets; run: chmod 600 {path}"
    assert len(problems(path)) == 2


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert problems(tmp_path / "none")[0].startswith("there is no such file; write a URL a line")
    path = tmp_path / "notify.urls"
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    assert problems(path) == ["is not UTF-8 text"]
    write(path, "#" * 70_000)
    assert problems(path) == ["has more than 65536 bytes"]


@pytest.mark.posix("FIFOs, and directories that can be opened")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert problems(tmp_path / "fifo") == ["is not a file"]
    assert problems(tmp_path) == ["is not a file"]


# -- the page ------------------------------------------------------------------------------


@needs_apprise
def test_the_example_of_the_page_is_right() -> None:
    (block,) = [text.partition("```")[0] for text in PAGE.split("```toml\n")[1:] if "[notify]" in text]
    data = tomllib.loads(block)
    Events.model_validate(data["events"])
    notify = Notify.model_validate(data["notify"])
    assert notify.targets
    assert set(data["notify"]) == set(Notify.model_fields)


@pytest.mark.parametrize(("table", "model"), [("events", Events), ("notify", Notify)])
def test_the_page_has_every_key_with_its_default(table: str, model: type[Section]) -> None:
    section = re.split(r"^#+ ", PAGE.split(f"## `[{table}]`")[1], flags=re.MULTILINE)[0]
    rows = dict(line.split(" | ")[:2] for line in section.splitlines() if line.startswith("| `"))
    listed = {key.strip("| `"): default.strip().strip("`") for key, default in rows.items()}
    assert list(listed) == list(model.model_fields)
    for key, field in model.model_fields.items():
        written = tomllib.loads(f"x = {listed[key]}")["x"] if listed[key] else None
        if written is not None:
            written = field_reader(model, key).validate_python(written)
        assert written == field.get_default()
