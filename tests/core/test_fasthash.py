"""The unrolled hash against what a kernel computed, and against the rule in words."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.fasthash import hasher
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity, IPAddress

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "jhash-kernel.json").read_text())


def packed(client: IPAddress, port: int, rest: bytes) -> bytes:
    """Addresses and ports as they stand in a packet."""
    length = len(client.packed)
    return client.packed + rest[:length] + port.to_bytes(2, "big") + rest[-2:]


def test_every_triple_of_the_kernel() -> None:
    for vector in VECTORS:
        client = ip_address(vector["client"])
        bucket = hasher(Affinity(vector["affinity"]), client.version, vector["seed"])
        assert bucket(packed(client, vector["port"] or 0, bytes(range(7, 25)))) == vector["bucket"], vector


@given(
    client=st.ip_addresses(),
    port=st.integers(0, 65535),
    seed=st.integers(0, 2**32 - 1),
    affinity=st.sampled_from(Affinity),
    rest=st.binary(min_size=18, max_size=18),
)
def test_it_is_the_rule(client: IPAddress, port: int, seed: int, affinity: Affinity, rest: bytes) -> None:
    bucket = hasher(affinity, client.version, seed)(packed(client, port, rest))
    assert bucket == bucket_of(flow_key(affinity, client, port), seed)
