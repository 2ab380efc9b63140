"""What all tests share: the seed of a run, what this host lacks, and a plain word on what was skipped.

- ``@pytest.mark.netns``: needs root (or root in a user namespace), network namespaces and nftables.
- ``@pytest.mark.posix("file modes")``: needs what Windows has not; ``@pytest.mark.windows``: needs Windows
  (``make test-windows``).
- ``rng``: a random generator of the test's own, from the seed of the run.
- The seed is printed at the top, and with every failed run; ``--hypothesis-seed=N`` replays both
  hypothesis' examples and ``rng``. A build (``CI`` is set) always takes the same one.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

SEED = pytest.StashKey[int]()
_CI_SEED = 20_240_607

# No deadline for one example: these machines have two cores and other things to do.
settings.register_profile(
    "nlbfarm", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("nlbfarm")

# A namespace of its own for everything, so that the question leaves nothing behind whatever the answer is.
_PROBE = """
mount -t tmpfs tmpfs /run &&
ip netns add probe &&
ip netns exec probe ip link set lo up &&
ip link add left type veth peer name right netns probe &&
ip netns exec probe nft add table inet probe
"""


@functools.cache
def missing_for_netns() -> str:
    """Return what this host lacks for tests in network namespaces, or ``""``; found out by doing it."""
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root (run as root, or in `unshare --user --map-root-user --net --mount`)"
    for program in ("unshare", "ip", "nft"):
        if shutil.which(program) is None:
            return f"the program {program!r}"
    try:
        probe = subprocess.run(
            ["unshare", "--net", "--mount", "sh", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "network namespaces with nftables (the probe hung)"
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines()
        return f"network namespaces with nftables ({lines[0] if lines else 'no reason given'})"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of this run before hypothesis reads it."""
    given = config.getoption("hypothesis_seed", default=None)
    if given is None:
        given = _CI_SEED if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
        config.option.hypothesis_seed = str(given)
    config.stash[SEED] = int(given)


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed."""
    return f"seed: {config.stash[SEED]} (replay with --hypothesis-seed={config.stash[SEED]})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, and say why."""
    if item.get_closest_marker("netns") is not None and (missing := missing_for_netns()):
        pytest.skip(f"lack of {missing}")
    posix = item.get_closest_marker("posix")
    if posix is not None and os.name != "posix":
        pytest.skip(f"lack of {posix.args[0]}")
    if item.get_closest_marker("windows") is not None and sys.platform != "win32":
        pytest.skip("lack of Windows (make test-windows runs it in Wine)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was not tested and why, always; and with which seed, when something failed."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ").removeprefix("lack of ")] += 1
    terminalreporter.section("what was not tested")
    if not reasons:
        terminalreporter.write_line("skipped 0: everything that was collected was run")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count} for lack of {reason}")
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"replay with --hypothesis-seed={config.stash[SEED]}")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return a random generator that depends on the seed of the run and on the test alone."""
    return random.Random(f"{request.config.stash[SEED]}:{request.node.nodeid}")
