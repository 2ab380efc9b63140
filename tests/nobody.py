"""Being an ordinary user, in a test that root runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

# Tests often run from a home directory that is closed to others: a mount namespace of the test's own
# shows this interpreter and these packages at places that everybody may read.
BECOME_NOBODY = """
mount -t tmpfs -o mode=755 tmpfs /mnt
for path; do
  [ "$path" = -- ] && break
  number=$((${number:-0} + 1)); mkdir /mnt/$number; mount --bind "$path" /mnt/$number; shift
done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -c 'exec "$@"' sh "$@"
"""
# (setpriv itself still holds root's rights when it starts a program; the shell in between does not.)


def as_nobody(*argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run a program as an ordinary user; ``python`` is this interpreter with these packages.

    Skips where this test may not become one, or may not mount.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("lack of root, setpriv and unshare, to become an ordinary user")
    packages = [entry for entry in sys.path if os.path.isdir(entry) and not entry.startswith(sys.base_prefix)]
    shown = [sys.base_prefix, *packages]
    python = f"/mnt/1/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    command = [python if word == "python" else word for word in argv]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", BECOME_NOBODY, "sh", *shown, "--", *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd="/",
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONHOME": "/mnt/1",
            "LD_LIBRARY_PATH": "/mnt/1/lib",
            "PYTHONPATH": os.pathsep.join(f"/mnt/{number}" for number in range(2, len(shown) + 1)),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
