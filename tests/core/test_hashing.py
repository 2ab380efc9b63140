"""The hash rule against what a real kernel computed, and against the kernel's own definition."""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.hashing import bucket_of, echo_key, flow_key, group_seed, jhash
from nlbfarm.core.policy import Affinity

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "jhash-kernel.json").read_text())


def test_every_triple_of_the_kernel() -> None:
    wrong = [
        vector
        for vector in VECTORS
        if bucket_of(
            flow_key(Affinity(vector["affinity"]), ip_address(vector["client"]), vector["port"] or 0),
            vector["seed"],
        )
        != vector["bucket"]
    ]
    assert wrong == []


def test_the_vectors_cover_what_they_should() -> None:
    shapes = Counter((v["affinity"], ip_address(v["client"]).version, v["seed"]) for v in VECTORS)
    assert len(VECTORS) == 1440
    assert len({shape[:2] for shape in shapes}) == 6
    assert len({shape[2] for shape in shapes}) == 4
    assert len(shapes) == 24


def reference_jhash(key: bytes, initval: int) -> int:
    """``include/linux/jhash.h`` transcribed statement by statement, slow and plain."""
    mask = 0xFFFFFFFF

    def rol(word: int, shift: int) -> int:
        return (word << shift | word >> (32 - shift)) & mask

    abc = [(0xDEADBEEF + len(key) + initval) & mask] * 3
    while len(key) > 12:
        for i in range(3):
            abc[i] = (abc[i] + int.from_bytes(key[4 * i : 4 * i + 4], "little")) & mask
        a, b, c = abc
        for shift in (4, 6, 8, 16, 19, 4):
            # a -= c; a ^= rol32(c, shift); c += b; then the names move on by one
            a = ((a - c) & mask) ^ rol(c, shift)
            c = (c + b) & mask
            a, b, c = b, c, a
        abc = [a, b, c]
        key = key[12:]
    if not key:
        return abc[2]
    for index, byte in enumerate(key):
        abc[index // 4] = (abc[index // 4] + (byte << 8 * (index % 4))) & mask
    a, b, c = abc
    for shift in (14, 11, 25, 16, 4, 14, 24):
        # c ^= b; c -= rol32(b, shift); then the names move on by one
        c = ((c ^ b) - rol(b, shift)) & mask
        a, b, c = b, c, a
    return (a, b, c)[1]


@given(st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_any_length_equals_the_kernels_definition(key: bytes, seed: int) -> None:
    assert jhash(key, seed) == reference_jhash(key, seed)


@pytest.mark.parametrize(
    ("affinity", "client", "key"),
    [
        (Affinity.CLIENT_PORT, "192.0.2.7", bytes([192, 0, 2, 7, 0x12, 0x34, 0, 0])),
        (Affinity.CLIENT, "192.0.2.7", bytes([192, 0, 2, 7])),
        (Affinity.NETWORK, "192.0.2.7", bytes([192, 0, 2, 0])),
        (Affinity.CLIENT_PORT, "2001:db8::1:2", IPv6Address("2001:db8::1:2").packed + b"\x12\x34\0\0"),
        (Affinity.CLIENT, "2001:db8::1:2", IPv6Address("2001:db8::1:2").packed),
        (Affinity.NETWORK, "2001:db8:0:5:6::7", IPv6Address("2001:db8:0:5::").packed),
    ],
)
def test_key_of_each_affinity(affinity: Affinity, client: str, key: bytes) -> None:
    assert flow_key(affinity, ip_address(client), 0x1234) == key


def test_an_echos_key_is_the_client() -> None:
    assert echo_key(IPv4Address("192.0.2.7")) == bytes([192, 0, 2, 7])


@given(st.binary(max_size=24), st.integers(0, 2**32 - 1))
def test_bucket_is_the_scaled_hash(key: bytes, seed: int) -> None:
    assert bucket_of(key, seed) == (jhash(key, seed) * 256) >> 32


def test_seed_depends_on_secret_farm_and_group_and_on_nothing_else() -> None:
    seeds = {
        group_seed(secret, farm, group)
        for secret in (b"a" * 32, b"b" * 32)
        for farm, group in (("shop", "web"), ("shop", "api"), ("shopw", "eb"), ("", "shopweb"))
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    # A farm is upgraded node by node: the derivation must never change.
    assert group_seed(b"a" * 32, "shop", "web") == 0xCBB0880A
