"""What a measurement ran on, for its results."""

from __future__ import annotations

import os
import platform
from typing import Any

from nlbfarm.lab import Lab


def about(lab: Lab) -> dict[str, Any]:
    """Return the farm, the host and its programs; the farm runs."""
    return {
        "farm_nodes": len(lab.names),
        "backend": lab.status(lab.running[0])["backend"]["name"],
        "server": lab.server.name,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
    }


def forgive(lab: Lab, node: str) -> None:
    """Let a node that was killed on purpose start at once: it would wait, as one does that keeps failing."""
    lab.world.run(["sh", "-c", 'rm -f "$0"/*/starts.json', f"/run/nlbfarm-lab/{node}/state"])
