"""The administrator of a lab's farm: drains and stops nodes, changes powers, and waits for the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlbfarm.lab.farm import Lab

__all__ = ["Operator"]


class Operator:
    """Gives orders through the control socket of a node, the ordered one's own unless another is named.

    Args:
        lab: The lab.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def start(self, node: str, *, through: str = "") -> None:
        """Let a node that was drained or stopped serve again."""
        self._order("start", node, through)

    def drain(self, node: str, *, through: str = "", now: bool = False) -> None:
        """Let a node give its buckets away and keep its connections until they end."""
        self._order("drain", node, through, now=now)

    def stop(self, node: str, *, through: str = "", now: bool = False) -> None:
        """Let a node drain and then leave the farm; its process stays."""
        self._order("stop", node, through, now=now)

    def restart(self, node: str, *, through: str = "", now: bool = False, process: bool = False) -> None:
        """Let a node drain, leave and come back; with ``process``, replace only its process, at once."""
        self._order("restart", node, through, now=now, process=process)

    def power(self, node: str, power: int | None, *, through: str = "") -> None:
        """Set a node's weight in every group; ``None`` is what is configured."""
        self._order("power", node, through, power=power, group=None)

    def failback(self, node: str) -> None:
        """Give failover groups back to who comes first, told to any node."""
        self._lab.control(node, "failback", {"group": None})

    def reload(self, node: str, text: str = "") -> dict[str, Any]:
        """Let a node read its configuration file again, which is replaced by ``text`` before, if given.

        Returns:
            What the node says: ``changed``, ``refused``, ``applied``.
        """
        if text:
            self._lab.configure(node, text)
        return self._lab.control(node, "reload", {"dry_run": False})

    def wait_for_shares(
        self, shares: Mapping[str, int], *, within: int = 1, timeout: float = 20
    ) -> tuple[int, ...]:
        """Wait until all running nodes agree on a placement with these shares and do it.

        Args:
            shares: Buckets of each node; a node that is not named has none.
            within: How far a share may be off.
            timeout: Seconds.

        Returns:
            The owner's id of each bucket.
        """

        def shared() -> tuple[int, ...] | None:
            placement = self._lab.placement()
            if placement is None or 0 in placement:
                return None
            counts = {node: placement.count(self._lab.id_of(node)) for node in self._lab.names}
            fits = all(
                abs(count - shares.get(node, 0)) <= (within if node in shares else 0)
                for node, count in counts.items()
            )
            return placement if fits else None

        said = ", ".join(f"{node} {share}" for node, share in shares.items())
        return self._lab.wait_for(shared, timeout, f"the buckets to be shared as {said}")

    def wait_handed_over(self, node: str, *, timeout: float = 20) -> tuple[int, ...]:
        """Wait until a node owns nothing and the others share all buckets; its connections may go on.

        Returns:
            The owner's id of each bucket.
        """
        others = [name for name in self._lab.running if name != node]
        return self._lab.settle(*others, timeout=timeout)

    def wait_drained(self, node: str, *, timeout: float = 75) -> None:
        """Wait until a node neither holds nor drains a bucket."""

        def drained() -> bool:
            row = self.row(node)
            return row["state"] in ("DRAINING", "STOP") and not _any(row, "holding", "draining")

        self._lab.wait_for(drained, timeout, f"{node} to have drained")

    def wait_stopped(self, node: str, *, timeout: float = 75) -> None:
        """Wait until a node has drained and left."""

        def stopped() -> bool:
            row = self.row(node)
            gone = row["state"] == "STOP" and not row["in_view"]
            return gone and not _any(row, "holding", "draining")

        self._lab.wait_for(stopped, timeout, f"{node} to have stopped")

    def wait_quiet(self, nodes: Sequence[str] = (), *, timeout: float = 75) -> None:
        """Wait until nothing is adopted or drained any more on these nodes (default: all running)."""

        def quiet() -> bool:
            groups = [self._lab.status(node)["groups"][0] for node in nodes or self._lab.running]
            return not any(set(group["states"]) & set("AD") for group in groups)

        self._lab.wait_for(quiet, timeout, "every move of a bucket to have ended")

    def row(self, node: str, *, seen_by: str = "") -> dict[str, Any]:
        """Return what a node says of itself, or what another one says of it, as ``status`` has it."""
        nodes = self._lab.status(seen_by or node)["nodes"]
        found: dict[str, Any] = next(row for row in nodes if row["name"] == node)
        return found

    def _order(self, verb: str, node: str, through: str, **args: Any) -> None:
        self._lab.control(through or node, verb, {"node": node, **args})


def _any(row: dict[str, Any], *keys: str) -> bool:
    return any(count for key in keys for count in row[key].values())
