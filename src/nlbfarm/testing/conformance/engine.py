"""What pydivert's engine for Linux (eBPF), which only tests use, keeps from a filter."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["APART"]

APART: Mapping[str, str] = {
    "cut off in an extension header": "the engine does not see such packets; the stack drops them later",
    "ports behind the first fragment": "the engine does not see later fragments whose next header is an "
    "extension header; their first fragment is dropped, so they come to nothing",
    "cut off in the TCP, UDP or ICMP header": "of an ICMPv6 message without a byte the engine reads the type "
    "from the frame's padding, and may take it for neighbour discovery",
}
"""For ``check_filter_backend(apart=…)``, by category. The engine puts checksums of ICMP right, too."""
