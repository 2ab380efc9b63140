"""The demo, from the command line to the JSON: everything real, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.netns

KEYS = {
    "nodes": int,
    "backend": str,
    "delivery": str,
    "server": str,
    "probes_per_second": float,
    "share": dict,
    "crash": dict,
    "rejoin": dict,
    "leftovers": list,
}
CRASH_KEYS = {
    "node",
    "detect_ms",
    "outage_ms",
    "requests_failed",
    "buckets_unserved_after",
    "buckets_double_served",
}
NOBODY = 65534
TIMEOUT = 180


def check(results: dict[str, Any], server: str) -> None:
    assert {key: type(value) for key, value in results.items()} == KEYS
    assert results["nodes"] == 3
    assert results["server"] == server
    assert results["delivery"] == "multicast"
    assert results["leftovers"] == []
    share = results["share"]
    assert set(share) == {"web1", "web2", "web3"}
    buckets = [one["buckets"] for one in share.values()]
    assert sum(buckets) == 256
    assert max(buckets) - min(buckets) <= 1
    requests = sum(one["requests"] for one in share.values())
    assert requests > 1000
    for one in share.values():
        assert one["requests"] == pytest.approx(requests * one["buckets"] / 256, rel=0.1)
    crash = results["crash"]
    assert set(crash) == CRASH_KEYS
    assert crash["buckets_unserved_after"] == 0
    assert crash["buckets_double_served"] == 0
    assert 0 < crash["outage_ms"]["p50"] <= crash["outage_ms"]["p99"] <= crash["outage_ms"]["max"] < 1000
    assert 0 < crash["detect_ms"] <= 1000
    assert set(results["rejoin"]) == {"moved_buckets", "seconds", "requests_failed"}
    assert results["rejoin"]["moved_buckets"] in range(80, 100)


def test_the_demo_reaches_its_goals(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "nlbfarm.cli", "demo", "--server", "builtin", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check(json.loads(file.read_text()), "builtin")
    assert "Every goal was reached" in done.stdout


def interpreter_for_everybody() -> str | None:
    """Return a Python of this version that an ordinary user may start; tests often run from root's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if (
            candidate
            and as_nobody(
                [candidate, "-c", "import pydantic, psutil, rich, pyroute2, nlbfarm.cli"]
            ).returncode
            == 0
        ):
            return candidate
    return None


def as_nobody(argv: list[str], timeout: float = 30) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    # setpriv itself still holds root's rights when it starts a program; the shell in between does not.
    become += ["sh", "-c", 'exec "$@"', "sh"]
    return subprocess.run(
        [*become, *argv],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_the_demo_runs_as_an_ordinary_user() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("lack of root and setpriv, to become an ordinary user")
    if as_nobody(["unshare", "--user", "--map-root-user", "--net", "true"]).returncode:
        pytest.skip("lack of user namespaces for ordinary users")
    python = interpreter_for_everybody()
    if python is None:
        pytest.skip("lack of a Python that an ordinary user may start here")
    done = as_nobody([python, "-m", "nlbfarm.cli", "demo", "--server", "builtin", "--json", "-"], TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    check(json.loads(done.stdout), "builtin")
