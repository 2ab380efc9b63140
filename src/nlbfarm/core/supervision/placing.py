"""Where the clients of a node are, as its supervision has to know it."""

from __future__ import annotations

from nlbfarm.core.node import Node
from nlbfarm.core.placement import worst_accepted
from nlbfarm.core.supervision.model import Placed

__all__ = ["placed"]


def placed(node: Node | None) -> Placed:
    """Return whether ``node`` has buckets, and whether another node of its view is fitter to have them.

    Before there is a state machine of the protocol neither is so.
    """
    if node is None:
        return Placed(serving=False, others=False)
    best = node.best_other()
    others = best is not None and (not node.able or worst_accepted([best]) < node.fitness)
    return Placed(serving=any(node.holding), others=others)
