"""The hash rule: which bucket a client belongs to.

``bucket = (jhash(key, seed) * 256) >> 32``, where ``jhash`` is the Linux kernel's Jenkins hash, so
that nftables, eBPF and Python all come to the same bucket. The key depends on the affinity:

=============== ====================================================================
``client-port`` source address, source port (2 bytes, network order), 2 zero bytes
``client``      source address
``network``     source address with the bits below /24 (IPv4) or /64 (IPv6) zeroed
=============== ====================================================================

Addresses are 4 or 16 bytes in network order. The two zero bytes are nftables' padding of a
concatenation to whole words. The seed is secret, so that a client cannot choose ports to aim at one node.
"""

from __future__ import annotations

import hmac
import struct

from nlbfarm.core.policy import Affinity, IPAddress

__all__ = ["bucket_of", "echo_key", "flow_key", "group_seed", "jhash"]

_INITVAL = 0xDEADBEEF
_MASK = 0xFFFFFFFF
_BLOCK = 12

_NETWORK_MASKS = {4: 0xFFFFFF00, 6: ((1 << 64) - 1) << 64}

# The lengths of every key of this module, so that the packet path neither pads nor compiles a format.
_WORDS = {length: struct.Struct(f"<{length // 4}I") for length in (4, 8, 16, 20)}


def jhash(data: bytes, seed: int) -> int:
    """Return the Linux kernel's ``jhash(data, len(data), seed)``, words read as little-endian.

    Args:
        data: What to hash; any length.
        seed: ``initval`` in the kernel, 0..2**32-1.

    Returns:
        32 bits.

    Source: ``include/linux/jhash.h`` (Bob Jenkins' lookup3).
    """
    a = b = c = (_INITVAL + len(data) + seed) & _MASK
    words = _WORDS.get(len(data))
    tail: tuple[int, ...]
    if words is not None:
        tail = words.unpack(data)
    elif data:
        padded = data + bytes(-len(data) % 4)
        tail = struct.unpack(f"<{len(padded) // 4}I", padded)
    else:
        return c

    while len(tail) > 3:
        a += tail[0]
        b += tail[1]
        c += tail[2]
        tail = tail[3:]
        # __jhash_mix; only what a rotation or the next subtraction reads must be cut to 32 bits.
        c &= _MASK
        a = ((a - c) ^ (c << 4 | c >> 28)) & _MASK
        c += b
        b = ((b - a) ^ (a << 6 | a >> 26)) & _MASK
        a += c
        c = ((c - b) ^ (b << 8 | b >> 24)) & _MASK
        b += a
        a = ((a - c) ^ (c << 16 | c >> 16)) & _MASK
        c += b
        b = ((b - a) ^ (a << 19 | a >> 13)) & _MASK
        a += c
        c = ((c - b) ^ (b << 4 | b >> 28)) & _MASK
        b += a

    a += tail[0]
    if len(tail) > 1:
        b += tail[1]
    if len(tail) > 2:
        c += tail[2]
    # __jhash_final
    b &= _MASK
    c = ((c ^ b) - (b << 14 | b >> 18)) & _MASK
    a = ((a ^ c) - (c << 11 | c >> 21)) & _MASK
    b = ((b ^ a) - (a << 25 | a >> 7)) & _MASK
    c = ((c ^ b) - (b << 16 | b >> 16)) & _MASK
    a = ((a ^ c) - (c << 4 | c >> 28)) & _MASK
    b = ((b ^ a) - (a << 14 | a >> 18)) & _MASK
    return ((c ^ b) - (b << 24 | b >> 8)) & _MASK


def flow_key(affinity: Affinity, client: IPAddress, port: int) -> bytes:
    """Return what is hashed for a packet from ``client``.

    Args:
        affinity: The rule's affinity.
        client: The packet's source address.
        port: Its source port, 0..65535; only ``client-port`` looks at it.
    """
    if affinity is Affinity.CLIENT_PORT:
        return client.packed + port.to_bytes(2, "big") + b"\0\0"
    if affinity is Affinity.CLIENT:
        return client.packed
    return (int(client) & _NETWORK_MASKS[client.version]).to_bytes(len(client.packed), "big")


def echo_key(client: IPAddress) -> bytes:
    """Return what is hashed for an ICMP echo request: the client's address, whatever the affinity."""
    return client.packed


def bucket_of(key: bytes, seed: int) -> int:
    """Return the bucket, 0..255, of a key: the hash scaled as the kernel's ``reciprocal_scale`` does."""
    return jhash(key, seed) >> 24


def group_seed(hash_secret: bytes, farm: str, group: str) -> int:
    """Derive the seed of a group's hash, so that nobody outside the farm can know it.

    HKDF-SHA256 (RFC 5869) of the secret, with the farm's and the group's name as ``info``, cut to 32 bits.
    The heartbeat keys play no part: rotating them moves no bucket.

    Args:
        hash_secret: The farm's hash secret, from its key file.
        farm: Name of the farm.
        group: Name of the group.

    Returns:
        0..2**32-1.
    """
    names = b"".join(len(name).to_bytes(4, "big") + name for name in (farm.encode(), group.encode()))
    extracted = hmac.digest(b"nlbfarm", hash_secret, "sha256")
    expanded = hmac.digest(extracted, b"group seed" + names + b"\x01", "sha256")
    return int.from_bytes(expanded[:4], "big")
