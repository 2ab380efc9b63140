"""Where the clients of a node are, as its supervision has to know it."""

from __future__ import annotations

from nlbfarm.core.node import Node
from nlbfarm.core.placement import worst_accepted
from nlbfarm.core.supervision.model import Placed

__all__ = ["placed"]


def placed(node: Node | None) -> Placed:
    """Return whether ``node`` has buckets, and whether others have all of them, a fitter one among them.

    That another one *could* have them is not enough: two nodes that fail at the same time, while nobody has
    them, would each leave because of the other. Of two, each of which heard that the other had all buckets,
    one heard it later, and still has them. Before there is a state machine of the protocol neither is so.
    """
    if node is None:
        return Placed(serving=False, others=False)
    best = node.best_other()
    fitter = best is not None and (not node.able or worst_accepted([best]) < node.fitness)
    return Placed(serving=any(node.holding), others=fitter and node.others_serve())
