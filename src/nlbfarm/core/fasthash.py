"""The hash rule of ``nlbfarm.core.hashing``, unrolled for the packet path: straight from a packet's bytes.

``hasher`` returns a function for one affinity and seed. What it is given begins with the source address and
goes on as packets do: destination address, source port. It reads the key's words in place, without making
the key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from nlbfarm.core.policy import Affinity

__all__ = ["hasher"]

_INITVAL = 0xDEADBEEF
_M = 0xFFFFFFFF

Hasher = Callable[[bytes], int]

# The port's two bytes and the two zero bytes behind them are one little-endian word.
_PORT4 = struct.Struct("<I4xH").unpack_from
_ADDRESS4 = struct.Struct("<I").unpack_from
_PORT6 = struct.Struct("<4I16xH").unpack_from
_ADDRESS6 = struct.Struct("<4I").unpack_from
_NETWORK6 = struct.Struct("<2I").unpack_from
_NETWORK4_MASK = 0x00FFFFFF  # the first three bytes of the address


def hasher(affinity: Affinity, version: int, seed: int) -> Hasher:
    """Return a function from ``source, destination, source port, …`` (packed) to the bucket, 0..255.

    Args:
        affinity: What is hashed. Only ``client-port`` reads beyond the source address.
        version: 4 or 6.
        seed: Seed of the group, 0..2**32-1.
    """
    if version == 4:
        if affinity is Affinity.CLIENT_PORT:
            return _two_words((_INITVAL + 8 + seed) & _M)
        return _one_word((_INITVAL + 4 + seed) & _M, _NETWORK4_MASK if affinity is Affinity.NETWORK else _M)
    if affinity is Affinity.CLIENT_PORT:
        return _five_words((_INITVAL + 20 + seed) & _M)
    return _four_words((_INITVAL + 16 + seed) & _M, network=affinity is Affinity.NETWORK)


def _one_word(initial: int, mask: int) -> Hasher:
    def bucket(data: bytes) -> int:
        (word,) = _ADDRESS4(data)
        return _final((initial + (word & mask)) & _M, initial, initial)

    return bucket


def _two_words(initial: int) -> Hasher:
    def bucket(data: bytes) -> int:
        word, port = _PORT4(data)
        return _final((initial + word) & _M, (initial + port) & _M, initial)

    return bucket


def _four_words(initial: int, *, network: bool) -> Hasher:
    def whole(data: bytes) -> int:
        first, second, third, fourth = _ADDRESS6(data)
        a, b, c = _mix(initial + first, initial + second, (initial + third) & _M)
        return _final((a + fourth) & _M, b & _M, c)

    def upper(data: bytes) -> int:
        first, second = _NETWORK6(data)
        a, b, c = _mix(initial + first, initial + second, initial)
        return _final(a & _M, b & _M, c)

    return upper if network else whole


def _five_words(initial: int) -> Hasher:
    def bucket(data: bytes) -> int:
        first, second, third, fourth, port = _PORT6(data)
        a, b, c = _mix(initial + first, initial + second, (initial + third) & _M)
        return _final((a + fourth) & _M, (b + port) & _M, c)

    return bucket


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """``__jhash_mix`` of include/linux/jhash.h; only ``c`` comes and goes cut to 32 bits."""
    a = ((a - c) ^ (c << 4 | c >> 28)) & _M
    c += b
    b = ((b - a) ^ (a << 6 | a >> 26)) & _M
    a += c
    c = ((c - b) ^ (b << 8 | b >> 24)) & _M
    b += a
    a = ((a - c) ^ (c << 16 | c >> 16)) & _M
    c += b
    b = ((b - a) ^ (a << 19 | a >> 13)) & _M
    a += c
    c = ((c - b) ^ (b << 4 | b >> 28)) & _M
    b += a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    """``__jhash_final`` of include/linux/jhash.h, and of its result the uppermost 8 bits."""
    c = ((c ^ b) - (b << 14 | b >> 18)) & _M
    a = ((a ^ c) - (c << 11 | c >> 21)) & _M
    b = ((b ^ a) - (a << 25 | a >> 7)) & _M
    c = ((c ^ b) - (b << 16 | b >> 16)) & _M
    a = ((a ^ c) - (c << 4 | c >> 28)) & _M
    b = ((b ^ a) - (a << 14 | a >> 18)) & _M
    return ((c ^ b) - (b << 24 | b >> 8)) >> 24 & 0xFF
