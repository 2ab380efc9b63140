"""What ``nlbfarm-node run`` costs while nothing happens: CPU and memory of each node of a farm of three."""

from __future__ import annotations

import os
import platform
import threading
from typing import Any

import psutil

from nlbfarm.lab import Lab

NODES = 3


def measure(seconds: float) -> dict[str, Any]:
    """Return, for each node, CPU in percent of one core, memory in MiB, threads and packets a second."""
    with Lab(NODES, "builtin") as lab:
        lab.start()
        lab.settle()
        processes = _nodes(lab)
        sent = {name: _sent(lab, name) for name in lab.names}
        before = {name: process.cpu_times() for name, process in processes.items()}
        threading.Event().wait(seconds)
        nodes = {}
        for name, process in processes.items():
            now, then = process.cpu_times(), before[name]
            memory = process.memory_full_info()
            nodes[name] = {
                "cpu_percent": round((now.user + now.system - then.user - then.system) / seconds * 100, 2),
                "rss_mib": round(memory.rss / 2**20, 1),
                "uss_mib": round(memory.uss / 2**20, 1),
                "threads": process.num_threads(),
                "packets_per_second": round((_sent(lab, name) - sent[name]) / seconds, 1),
            }
        backend = lab.status(lab.names[0])["backend"]["name"]
    return {
        "benchmark": "idle",
        "seconds": seconds,
        "farm_nodes": NODES,
        "backend": backend,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "nodes": nodes,
    }


def _nodes(lab: Lab) -> dict[str, psutil.Process]:
    """Find the farm's processes, by their command lines, as this host sees them."""
    found = {}
    for process in psutil.Process(lab.world.pid).children(recursive=True):
        command = process.cmdline()
        if "nlbfarm.cli" in command and "--node" in command:
            found[command[command.index("--node") + 1]] = process
    return found


def _sent(lab: Lab, node: str) -> int:
    """Return how many packets a node has sent, on both of its networks."""
    lines = lab.exec(node, ["cat", "/proc/net/dev"]).out.splitlines()
    return sum(int(line.split(":")[1].split()[9]) for line in lines if line.strip().startswith("eth"))
