"""Fetching a plan that is too large for a heartbeat, chunk by chunk, by its digest."""

from __future__ import annotations

from nlbfarm.core.messages import CHUNK
from nlbfarm.core.plans import decode_plan, encode_plan
from nlbfarm.core.wire import Plan, PlanChunk, PlanRequest, plan_digest

__all__ = ["PlanFetch", "answer"]


class PlanFetch:
    """One node's fetching: at most one plan at a time, asked for again when an answer is late.

    Args:
        node: This node's id.
        again_after: Seconds after which it asks again.
    """

    def __init__(self, node: int, again_after: float) -> None:
        self._node = node
        self._again_after = again_after
        self._digest = b""
        self._asked_at = 0.0
        self._chunks: dict[int, bytes] = {}

    def ask(self, digest: bytes, incarnation: int, now: float) -> PlanRequest | None:
        """Return the request to send now for the plan with ``digest``; ``None`` if one is under way."""
        if digest == self._digest and now - self._asked_at < self._again_after:
            return None
        if digest != self._digest:
            self._digest = digest
            self._chunks = {}
        self._asked_at = now
        first = 0
        while first in self._chunks:
            first += 1
        return PlanRequest(sender=self._node, incarnation=incarnation, digest=digest, first=first)

    def take(self, chunk: PlanChunk) -> Plan | None:
        """Take in a chunk; return the plan when it is whole.

        Raises:
            PeerError: The chunks do not make a plan, or not the one with that digest; all are forgotten.
        """
        if chunk.digest != self._digest:
            return None
        self._chunks[chunk.index] = chunk.data
        if any(index not in self._chunks for index in range(chunk.count)):
            return None
        data = b"".join(self._chunks[index] for index in range(chunk.count))
        self._chunks = {}
        self._digest = b""
        plan = decode_plan(data)
        return plan if plan_digest(plan) == chunk.digest else None


def answer(request: PlanRequest, plan: Plan, node: int, incarnation: int) -> tuple[PlanChunk, ...]:
    """Return the chunks of ``plan`` from ``request.first`` on."""
    data = encode_plan(plan)
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return tuple(
        PlanChunk(
            sender=node,
            incarnation=incarnation,
            digest=request.digest,
            index=index,
            count=len(pieces),
            data=piece,
        )
        for index, piece in enumerate(pieces)
        if index >= request.first
    )
