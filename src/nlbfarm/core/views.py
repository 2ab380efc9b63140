"""Comparing views and finding the nodes that all hear one another (rules 2 and 5): pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nlbfarm.core.wire import Epoch, Member, View

__all__ = ["disjoint", "greater", "largest_clique", "names"]


def names(view: View, node: int, incarnation: int) -> bool:
    """Whether ``view`` has ``node``, in this life, as a member."""
    return Member(node, incarnation) in view.members


def disjoint(one: View, other: View) -> bool:
    """Whether no node, in one life, is a member of both."""
    return not set(one.members) & set(other.members)


def rank(view: View) -> tuple[int, int, Epoch]:
    """Return the key by which views without a common member are compared; the greatest wins.

    More members first, then the lower leader, then the later epoch.
    """
    return len(view.members), -view.epoch.leader, view.epoch


def greater(one: View, other: View) -> bool:
    """Whether ``one`` wins over ``other``."""
    return rank(one) > rank(other)


def largest_clique(nodes: Collection[int], broken: Mapping[int, Collection[int]]) -> tuple[int, ...]:
    """Return the largest set of ``nodes`` without a broken pair; of equals, the one with the lowest ids.

    Args:
        nodes: At most 32 node ids.
        broken: For a node, those that it cannot work with; read in both directions.
    """
    conflicts: dict[int, set[int]] = {node: set() for node in nodes}
    for node, bad in conflicts.items():
        for other in broken.get(node, ()):
            if other in conflicts and other != node:
                bad.add(other)
                conflicts[other].add(node)
    whole = sorted(node for node, bad in conflicts.items() if not bad)
    troubled = sorted(node for node, bad in conflicts.items() if bad)
    best: tuple[int, ...] = ()

    def extend(chosen: tuple[int, ...], rest: list[int]) -> None:
        nonlocal best
        if len(chosen) + len(rest) < len(best):
            return
        if not rest:
            if len(chosen) > len(best) or (len(chosen) == len(best) and chosen < best):
                best = chosen
            return
        first, others = rest[0], rest[1:]
        extend((*chosen, first), [node for node in others if node not in conflicts[first]])
        if conflicts[first].intersection(others):
            extend(chosen, others)

    extend((), troubled)
    return tuple(sorted((*whole, *best)))
