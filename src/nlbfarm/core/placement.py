"""Who owns which bucket: shares that follow the powers, with the fewest moves.

A pure function of the eligible nodes, their powers and the previous placement, in integers only: the same
inputs give the same placement on every node, platform and ``PYTHONHASHSEED``.

A node's exact share is ``256 * power / total``. It gets that share rounded down, or rounded up: the buckets
that rounding down leaves over (fewer than there are nodes with a fraction) go one each, first to nodes that
hold more than the rounded-down share already, because one bucket less moves then; after them to the largest
fraction, then to the lowest id. Every node keeps what it holds, up to its share: together this makes the
moves the fewest possible.

Which buckets a node gives up or gets is of no consequence for the balance, since the hash spreads clients
evenly. The highest go and free ones are dealt out in runs, so that a filter needs few intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nlbfarm.core.buckets import BUCKETS, NOBODY, Placement
from nlbfarm.core.messages import Fitness
from nlbfarm.core.policy import Mode
from nlbfarm.errors import UsageError

__all__ = ["place", "worst_accepted"]

_EMPTY: Placement = (NOBODY,) * BUCKETS


def worst_accepted(fitnesses: Iterable[Fitness]) -> Fitness:
    """Return with what fitness, at worst, a node may own buckets, given those of all that could.

    Nobody takes itself out for a cause that all share: as long as nobody is sound, a suspicion and its
    confirmation count the same, so that the first to be sure does not lose its buckets to the last.
    """
    best = min(fitnesses, default=Fitness.SOUND)
    if best is Fitness.SOUND:
        return Fitness.SUSPECT
    return Fitness.DOWN if best is Fitness.DOWN else Fitness.DEGRADED


def place(previous: Placement, powers: Mapping[int, int], mode: Mode, *, sticky: bool = False) -> Placement:
    """Return the owner of each of a group's 256 buckets.

    Args:
        previous: The placement until now.
        powers: The power of each eligible node: one that is in the view, for long enough, and can serve.
        mode: How the group is placed. ``BALANCED``: by power. ``FAILOVER``: all to the highest power, among
            equals to the lowest id. ``BLOCKED``: all to nobody.
        sticky: In ``FAILOVER``, whether who owns the group keeps it as long as it is eligible.

    Returns:
        The placement. With no eligible node every bucket is ``NOBODY``'s. If all powers are zero nothing
        changes, except that buckets of nodes that are not eligible become ``NOBODY``'s.

    Raises:
        UsageError: ``previous`` is not 256 long, a node id is below 1, or a power is negative.
    """
    if len(previous) != BUCKETS:
        raise UsageError(f"a placement has {BUCKETS} buckets, not {len(previous)}")
    for node, power in powers.items():
        if node <= NOBODY or power < 0:
            raise UsageError(f"node {node} with power {power}: ids start at 1 and powers at 0")

    if mode is Mode.BLOCKED or not powers:
        return _EMPTY
    if not any(powers.values()):
        return tuple(owner if owner in powers else NOBODY for owner in previous)
    if mode is Mode.FAILOVER:
        owner = previous[0]
        if sticky and powers.get(owner) and previous.count(owner) == BUCKETS:
            return previous
        return (min(powers, key=lambda node: (-powers[node], node)),) * BUCKETS
    return _deal(previous, _shares(previous, powers))


def _shares(previous: Placement, powers: Mapping[int, int]) -> dict[int, int]:
    """Return how many buckets each node gets, by rising id; they add up to 256."""
    total = sum(powers.values())
    shares = {node: BUCKETS * powers[node] // total for node in sorted(powers)}

    def claim(node: int) -> tuple[bool, int, int]:
        fraction = BUCKETS * powers[node] % total
        return previous.count(node) <= shares[node], -fraction, node

    # Only nodes with a fraction: a share that comes out exactly is not rounded up.
    rounded = [node for node in shares if BUCKETS * powers[node] % total]
    for node in sorted(rounded, key=claim)[: BUCKETS - sum(shares.values())]:
        shares[node] += 1
    return shares


def _deal(previous: Placement, shares: Mapping[int, int]) -> Placement:
    """Let every node keep what it has, up to its share, and deal out the rest in runs."""
    missing = dict(shares)
    placement = list(previous)
    free = []
    for bucket, owner in enumerate(previous):
        if missing.get(owner, 0) > 0:
            missing[owner] -= 1
        else:
            free.append(bucket)
    heirs = (node for node, count in missing.items() for _ in range(count))
    for bucket, node in zip(free, heirs, strict=True):
        placement[bucket] = node
    return tuple(placement)
