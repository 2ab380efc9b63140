"""A right configuration, and changes to it."""

from __future__ import annotations

from pathlib import Path

from nlbfarm.config.keys import FarmKeys, generate

SHOP = """\
[farm]
name = "shop"
key_file = "shop.key"

[heartbeat]
interval = "100ms"
lost_after = 5
lease = "300ms"

[[nodes]]
id = 1
name = "web1"
addresses = ["192.0.2.11", "198.51.100.11"]

[[nodes]]
id = 2
name = "web2"
addresses = ["192.0.2.12", "198.51.100.12"]

[[vips]]
address = "192.0.2.100"
interface = "eth0"
delivery = "multicast"

[[rules]]
name = "web"
vip = "192.0.2.100"
protocol = "tcp"
ports = [80, 443]
affinity = "client-port"

[[checkers]]
name = "page"
type = "http"
url = "http://127.0.0.1/health"
on_failure = "wait"
"""


def changed(*changes: tuple[str, str], text: str = SHOP) -> str:
    """Return the configuration with each first string replaced by the second; each must be there once."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def write(directory: Path, text: str = SHOP) -> Path:
    """Write a configuration and, beside it, its key file; return the configuration's path."""
    path = directory / "shop.toml"
    path.write_text(text, encoding="utf-8")
    if not (directory / "shop.key").exists():
        generate(directory / "shop.key")
    return path


KEYS = FarmKeys({1: bytes(range(32))}, 1, bytes(range(32, 64)))
"""Keys that are the same in every run."""
