"""What a worker answers to a packet that it is asked about; pure.

The oracle is ``nlbfarm.core.decision.decide``. The answer is a mark: the kernel asks the lease, counts,
labels the flow, remembers what it was told, and accepts or drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nlbfarm.backends.nfqueue.marks import ASKED, Kind, QueueMarks
from nlbfarm.core.buckets import Bitmap, BucketState, BucketStates, bits

__all__ = ["answer", "answers", "changed", "overtaken"]

# By state, what is answered to each of ``ASKED``. What has no SYN switches at once: ADOPT is OWN, DRAIN is
# FOREIGN. A flow of theirs begins with whatever packet comes first.
_ANSWERS: Mapping[BucketState, Mapping[Kind, Kind]] = {
    BucketState.OWN: {
        Kind.NEW: Kind.BEGIN_OWN,
        Kind.STRANGER: Kind.OWN,
        Kind.OTHER: Kind.BEGIN_OWN,
        Kind.KNOWN: Kind.OWN,
    },
    BucketState.ADOPT: {
        Kind.NEW: Kind.BEGIN_ADOPT,
        Kind.STRANGER: Kind.NOT_NEW,
        Kind.OTHER: Kind.BEGIN_OWN,
        Kind.KNOWN: Kind.ADOPT,
    },
    BucketState.DRAIN: {
        Kind.NEW: Kind.NOT_NEW,
        Kind.STRANGER: Kind.NOT_NEW,
        Kind.OTHER: Kind.FOREIGN,
        Kind.KNOWN: Kind.DRAIN,
    },
    BucketState.FOREIGN: dict.fromkeys(ASKED, Kind.FOREIGN),
}
_DROPS = (Kind.FOREIGN, Kind.NOT_NEW)


def answer(state: BucketState, asked: Kind) -> Kind:
    """Return what is answered to a packet of that kind whose bucket is in that state, under a lease."""
    return _ANSWERS[state][asked]


def answers(
    marks: QueueMarks, group: int, states: BucketStates, buckets: Bitmap
) -> Iterator[tuple[int, int]]:
    """Yield with every mark that a worker can be asked about these buckets the mark that it answers.

    Args:
        marks: The marks in use.
        group: Index of the group in the policy.
        states: The group's bucket states.
        buckets: Which buckets.
    """
    found = {
        state: [(marks.mark(asked, group), marks.mark(answer(state, asked), group)) for asked in ASKED]
        for state in BucketState
    }
    for bucket in bits(buckets):
        for question, given in found[states.state(bucket)]:
            yield question + bucket, given


def overtaken(
    marks: QueueMarks, group: int, before: BucketStates, after: BucketStates
) -> Iterator[tuple[int, int]]:
    """Yield what is answered to packets that came before a change and are judged after it, where it differs.

    What was not to be accepted when it came was another node's, and that one may have accepted it.

    Args:
        marks: The marks in use.
        group: Index of the group in the policy.
        before: The group's bucket states when those packets came.
        after: Its states now.
    """
    drop = marks.mark(Kind.WAS_FOREIGN, group)
    for bucket in bits(changed(before, after)):
        for asked in ASKED:
            if (
                answer(before.state(bucket), asked) in _DROPS
                and answer(after.state(bucket), asked) not in _DROPS
            ):
                yield marks.mark(asked, group, bucket), drop


def changed(before: BucketStates, after: BucketStates) -> Bitmap:
    """Return the buckets whose state differs."""
    return before.own ^ after.own | before.adopt ^ after.adopt | before.drain ^ after.drain
