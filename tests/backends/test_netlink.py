"""Netlink messages in bytes; the kernel's side of it is in tests/netns."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.backends.netlink import attributes, messages


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_an_end(data: bytes) -> None:
    for _, _, _, _, payload in messages(data):
        assert sum(len(value) for _, value in attributes(payload)) <= len(payload)
    assert sum(len(value) for _, value in attributes(data)) <= len(data)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20))))
def test_attributes_are_read_as_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(
        struct.pack("=HH", 4 + len(value), kind | 0x8000) + value + bytes(-len(value) % 4)
        for kind, value in pairs
    )
    assert list(attributes(data)) == pairs
