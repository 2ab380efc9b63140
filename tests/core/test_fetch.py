"""Plans that are too large for a heartbeat."""

import pytest
from tests.core.words import plan

from nlbfarm.core.fetch import PlanFetch, answer
from nlbfarm.core.wire import Plan, PlanChunk, plan_digest
from nlbfarm.errors import PeerError

LARGE = Plan(
    plan(5, dict.fromkeys(range(1, 33), 1)).view,
    tuple(tuple((bucket + shift) % 32 + 1 for bucket in range(256)) for shift in range(8)),
)


def test_a_plan_comes_whole_in_any_order_and_with_losses() -> None:
    digest = plan_digest(LARGE)
    fetch = PlanFetch(2, again_after=0.2)
    request = fetch.ask(digest, incarnation=9, now=0.0)
    assert request is not None
    assert (request.sender, request.incarnation, request.first) == (2, 9, 0)
    chunks = answer(request, LARGE, 1, 1)
    assert len(chunks) > 1
    assert fetch.take(chunks[-1]) is None
    assert fetch.ask(digest, 9, 0.1) is None
    again = fetch.ask(digest, 9, 0.2)
    assert again is not None
    whole = [fetch.take(chunk) for chunk in answer(again, LARGE, 1, 1)]
    assert LARGE in whole


def test_a_request_names_the_first_chunk_that_is_missing() -> None:
    digest = plan_digest(LARGE)
    fetch = PlanFetch(2, 0.2)
    request = fetch.ask(digest, 9, 0.0)
    assert request is not None
    fetch.take(answer(request, LARGE, 1, 1)[0])
    again = fetch.ask(digest, 9, 1.0)
    assert again is not None
    assert again.first == 1


def test_chunks_of_another_plan_and_forged_ones_make_no_plan() -> None:
    fetch = PlanFetch(2, 0.2)
    digest = plan_digest(LARGE)
    fetch.ask(digest, 9, 0.0)
    assert fetch.take(PlanChunk(1, 1, bytes(16), 0, 1, b"x")) is None
    with pytest.raises(PeerError):
        fetch.take(PlanChunk(1, 1, digest, 0, 1, b"x"))
