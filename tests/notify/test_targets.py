"""Targets: what apprise delivers, to real servers; what is never shown; and a program of one's own."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.notify.sinks import MailServer, WebServer

from nlbfarm.events import NodeEvent, Severity
from nlbfarm.notify import DeliveryError, Message
from nlbfarm.notify import script as script_module
from nlbfarm.notify.script import ScriptTarget
from nlbfarm.notify.targets import AppriseTarget, problem, redacted, scrubbed

# apprise imports a module that Python 3.13 has no more, and does without it there.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
needs_apprise = pytest.mark.skipif(
    importlib.util.find_spec("apprise") is None, reason="lack of the package apprise (the extra notify)"
)

MESSAGE = Message(
    "shop",
    "web1",
    (
        NodeEvent(1, 1_700_000_000.0, "peer.lost", Severity.WARNING, "Node web2 is lost", {"peer": 2}),
        NodeEvent(2, 1_700_000_001.0, "service.given_up", Severity.ERROR, "Service <a> is given up", {}),
    ),
)


# -- secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mailto://user:secret@mail.example.com?to=ops@example.com", "mailto://mail.example.com"),
        ("https://hooks.example.com/services/T0/B0/secret?key=secret", "https://hooks.example.com"),
        ("JSONS://user:secret@hooks.example.com:8443/secret", "jsons://hooks.example.com"),
        ("json://[2001:db8::1]:80/secret", "json://[2001:db8::1]"),
        ("tgram://123456:secret/chat", "tgram://..."),
        ("slack://secret/secret/secret", "slack://..."),
        ("discord://secret/secret", "discord://..."),
        # What is not quoted as it has to be: the host would be a part of the password.
        ("mailto://user:sec/ret@mail.example.com", "mailto://..."),
        ("mailto://user:sec?ret@mail.example.com", "mailto://..."),
        ("mailto://user:sec#ret@mail.example.com", "mailto://..."),
        ("mailto://user:p@sec/ret@mail.example.com", "mailto://..."),
        ("mailto://user:p@sec?ret@mail.example.com", "mailto://..."),
        ("mailto://[secret", "mailto://..."),
        ("secret", "..."),
        ("", "..."),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_what_others_say_is_freed_of_secrets() -> None:
    url = "https://us%2Fer:pass%40word@hooks.example.com/T0KEN/x?key=VALUE"
    said = "POST https://hooks.example.com/T0KEN/x as us/er with pass@word or pass%40word, VALUE: 401"
    assert scrubbed(said, url) == "POST https://hooks.example.com/***/x as *** with *** or ***, ***: 401"
    assert scrubbed("chat 123456 of secretbot", "tgram://123456:secretbot/chat1") == "chat *** of ***"


# -- apprise -------------------------------------------------------------------------------


@needs_apprise
def test_urls_that_are_wrong() -> None:
    assert problem("mailto://user:secret@mail.example.com?to=ops@example.com") is None
    assert problem("https://hooks.example.com/secret") is None
    assert "a target is a URL, like" in str(problem("ops@example.com"))
    assert problem("nonsense://secret") == "nonsense://... is not a target that apprise knows"
    assert problem("slack://") == (
        "slack://... is not a target that apprise knows (An invalid Slack (first) Token () was specified.)"
    )
    assert "secret" not in str(problem("tgram://secret"))


def test_apprise_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problem("json://user:secret@hooks.example.com") == (
        "json://hooks.example.com needs the package apprise; install the extra: pip install 'nlbfarm[notify]'"
    )
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(DeliveryError, match=r"install the extra: pip install 'nlbfarm\[notify\]'"):
        AppriseTarget("json://hooks.example.com").send(MESSAGE)


@needs_apprise
def test_a_webhook() -> None:
    with WebServer() as web:
        AppriseTarget(f"json://user:secret@127.0.0.1:{web.port}/hook").send(MESSAGE)
        path, data = web.got.get(timeout=10)
        assert path == "/hook"
        assert (data["title"], data["type"]) == (MESSAGE.subject, "failure")
        assert data["message"] == MESSAGE.body
        assert web.authorizations == ["Basic dXNlcjpzZWNyZXQ="]


@needs_apprise
def test_a_plain_web_address_is_a_webhook() -> None:
    with WebServer() as web:
        AppriseTarget(f"http://127.0.0.1:{web.port}/hook?key=a%20b&on=1#x").send(MESSAGE)
        path, data = web.got.get(timeout=10)
        assert path == "/hook?key=a+b&on=1"
        assert data["title"] == "[shop/web1] 2 events: Service <a> is given up"


@needs_apprise
def test_a_mail() -> None:
    with MailServer() as mail:
        AppriseTarget(
            f"mailto://127.0.0.1:{mail.port}?to=ops@example.com&from=node@example.com&mode=insecure"
        ).send(MESSAGE)
        recipients, message = mail.got.get(timeout=10)
    assert recipients == ["ops@example.com"]
    assert message["Subject"] == MESSAGE.subject
    assert "node@example.com" in message["From"]
    part = message.get_body(("plain",))
    assert part is not None
    text = part.get_content()
    assert "warning: Node web2 is lost" in text
    assert "Service <a> is given up" in text


@needs_apprise
def test_a_failure_says_why_and_no_secret_and_logs_nothing_itself(caplog: pytest.LogCaptureFixture) -> None:
    with WebServer() as web:
        web.statuses = [401]
        with pytest.raises(DeliveryError, match="401") as caught:
            AppriseTarget(f"json://user:secretword@127.0.0.1:{web.port}/tokenpath").send(MESSAGE)
        port = web.port
    assert "secretword" not in str(caught.value)
    assert "tokenpath" not in str(caught.value)
    with pytest.raises(DeliveryError, match="onnection"):
        AppriseTarget(f"json://127.0.0.1:{port}").send(MESSAGE)  # nobody is there any more
    assert [record for record in caplog.records if record.name == "apprise"] == []
    logging.getLogger("apprise").warning("of somebody else")
    assert [record.getMessage() for record in caplog.records] == ["of somebody else"]


@needs_apprise
def test_a_target_that_apprise_does_not_know() -> None:
    with pytest.raises(DeliveryError, match="apprise does not know this target"):
        AppriseTarget("nonsense://secret").send(MESSAGE)


# -- a program -----------------------------------------------------------------------------


def python(source: str, *args: object) -> list[str]:
    return [sys.executable, "-I", "-c", source, *map(str, args)]


def test_a_script_gets_the_message_as_json(tmp_path: Path) -> None:
    source = (
        "import json, os, sys; e = os.environ; "
        "json.dump([json.load(sys.stdin), e['NLBFARM_FARM'], e['NLBFARM_NODE']], open(sys.argv[1], 'w'))"
    )
    target = ScriptTarget(python(source, tmp_path / "out"))
    target.send(MESSAGE)
    assert json.loads((tmp_path / "out").read_text()) == [MESSAGE.as_json(), "shop", "web1"]
    assert target.name == f"script {sys.executable}"


def test_a_script_that_reads_nothing(tmp_path: Path) -> None:
    many = Message("shop", "web1", MESSAGE.events * 2000)
    ScriptTarget(python("pass")).send(many)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys; print('first', flush=True); sys.exit('no pager\\n\\n')", "exit code 1: no pager"),
        ("import sys; sys.exit(3)", "exit code 3"),
    ],
)
def test_a_script_that_fails(source: str, why: str) -> None:
    with pytest.raises(DeliveryError) as caught:
        ScriptTarget(python(source)).send(MESSAGE)
    assert str(caught.value) == why


@pytest.mark.posix("signals")
def test_a_script_that_is_killed() -> None:
    with pytest.raises(DeliveryError, match="killed by signal 9"):
        ScriptTarget(python("import os; os.kill(os.getpid(), 9)")).send(MESSAGE)


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="cannot be run: "):
        ScriptTarget([str(tmp_path / "none")]).send(MESSAGE)


def test_a_script_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    source = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    with pytest.raises(DeliveryError, match="killed, because it took longer than 2 s"):
        ScriptTarget(python(source, tmp_path / "pid"), timeout=2).send(MESSAGE)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child of the script is still there"
        time.sleep(0.01)


def test_a_script_that_prints_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_module, "LARGEST_OUTPUT", 100_000)
    with pytest.raises(DeliveryError, match="killed, because it printed more than 100000 bytes: x"):
        ScriptTarget(python("while True: print('x' * 1000)")).send(MESSAGE)


def test_a_script_does_not_speak_for_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    ScriptTarget(python("import os, sys; sys.exit('NOTIFY_SOCKET' in os.environ)")).send(MESSAGE)
    assert os.environ["NOTIFY_SOCKET"]
