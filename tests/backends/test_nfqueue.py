"""The NFQUEUE backend without a kernel: what is answered, what the workers share, what the script says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from nlbfarm.backends.bucketing import load_function, reference_of
from nlbfarm.backends.marks import Marks
from nlbfarm.backends.nfqueue import NfqueueBackend
from nlbfarm.backends.nfqueue.backend import MAX_QUEUES
from nlbfarm.backends.nfqueue.board import Board
from nlbfarm.backends.nfqueue.marks import ASKED, KIND_AND_GROUP, NONCE, Kind, QueueMarks
from nlbfarm.backends.nfqueue.render import Queueing, map_changes, map_elements, open_script, remembered
from nlbfarm.backends.nfqueue.verdicts import answer, answers, changed, overtaken
from nlbfarm.config import filter as configuration
from nlbfarm.core.buckets import ALL, BUCKETS, BucketState, BucketStates
from nlbfarm.core.decision import PacketFacts, Reason, decide
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Protocol, Rule, Vip
from nlbfarm.errors import UsageError

VIP, VIP6 = IPv4Address("192.0.2.100"), IPv6Address("2001:db8::64")
POLICY = FilterPolicy(
    "shop",
    (Vip(VIP, "eth0"), Vip(VIP6, "eth0")),
    (Group("web", 1), Group("shut", 2, Mode.BLOCKED), Group("dns", 3)),
    (
        Rule("web", "web", VIP, Protocol.TCP, (80, 443)),
        Rule("web6", "web", VIP6, Protocol.TCP, (80,), Affinity.NETWORK),
        Rule("ssh", "shut", VIP, Protocol.TCP, (22,)),
        Rule("dns", "dns", VIP, Protocol.UDP, (53,), Affinity.CLIENT),
    ),
)
MARKS, ASKING = Marks(0x12345), QueueMarks(0xABC)
STATES = {
    BucketState.OWN: BucketStates(own=ALL),
    BucketState.ADOPT: BucketStates(adopt=ALL),
    BucketState.DRAIN: BucketStates(drain=ALL),
    BucketState.FOREIGN: BucketStates(),
}
REASONS = {
    Kind.OWN: Reason.OWN,
    Kind.BEGIN_OWN: Reason.OWN,
    Kind.ADOPT: Reason.ADOPT,
    Kind.BEGIN_ADOPT: Reason.ADOPT,
    Kind.DRAIN: Reason.DRAIN,
    Kind.FOREIGN: Reason.FOREIGN,
    Kind.NOT_NEW: Reason.NOT_NEW,
}


@pytest.mark.parametrize("state", BucketState)
@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_those_of_the_oracle(asked: Kind, state: BucketState) -> None:
    client = IPv4Address("198.51.100.7")
    facts = {
        Kind.NEW: PacketFacts("eth0", client, VIP, 6, 1024, 80, syn=True),
        Kind.STRANGER: PacketFacts("eth0", client, VIP, 6, 1024, 80, ack=True),
        Kind.KNOWN: PacketFacts("eth0", client, VIP, 6, 1024, 80, ack=True, established_here=True),
        Kind.OTHER: PacketFacts("eth0", client, VIP, 17, 1024, 53),
    }[asked]
    states = {"web": STATES[state], "dns": STATES[state]}
    found = answer(state, asked)
    assert REASONS[found] is decide(POLICY, states, True, facts).reason
    if asked is Kind.NEW:  # what opens a flow makes it established here
        assert (found in (Kind.BEGIN_OWN, Kind.BEGIN_ADOPT)) is decide(POLICY, states, True, facts).accepted


def test_answers_by_mark() -> None:
    found = dict(answers(ASKING, 0, BucketStates(own=1 << 3), ALL))
    assert len(found) == len(ASKED) * BUCKETS
    found |= dict(answers(ASKING, 2, BucketStates(adopt=1 << 255), 1 << 255))
    assert len(found) == len(ASKED) * (BUCKETS + 1)
    assert found[ASKING.mark(Kind.NEW, 0, 3)] == ASKING.mark(Kind.BEGIN_OWN, 0)
    assert found[ASKING.mark(Kind.NEW, 0, 4)] == ASKING.mark(Kind.FOREIGN, 0)
    assert found[ASKING.mark(Kind.STRANGER, 2, 255)] == ASKING.mark(Kind.NOT_NEW, 2)
    assert ASKING.mark(Kind.HASHED, 0, 3) not in found, "what was not asked is not answered"


def test_what_waited_while_its_bucket_came_here_is_dropped() -> None:
    """Its former owner may have accepted the same packet, when it came."""
    before = BucketStates(own=0b0011, adopt=0b0100, drain=0b1000)
    after = BucketStates(own=0b1_1110, adopt=0b0001)
    found = dict(overtaken(ASKING, 2, before, after))
    assert set(found.values()) == {ASKING.mark(Kind.WAS_FOREIGN, 2)}
    expected = {(4, asked) for asked in ASKED}  # it was foreign
    expected |= {(3, asked) for asked in (Kind.NEW, Kind.STRANGER, Kind.OTHER)}  # another one adopted it
    expected |= {(2, Kind.STRANGER)}  # another one drained it
    assert set(found) == {ASKING.mark(asked, 2, bucket) for bucket, asked in expected}


def test_marks_are_told_apart() -> None:
    every = {ASKING.mark(kind, group, bucket) for kind in Kind for group in (0, 255) for bucket in (0, 255)}
    assert len(every) == len(Kind) * 4
    assert {mark & NONCE for mark in every} == {ASKING.ours}
    assert {mark & ~KIND_AND_GROUP for mark in every} == {0, 255}
    for nonce in (0, 1 << 12):
        with pytest.raises(ValueError, match="nonce"):
            QueueMarks(nonce)


def test_changed_buckets() -> None:
    before, after = BucketStates(own=0b111), BucketStates(own=0b001, adopt=0b010, drain=1 << 255)
    assert changed(before, after) == 0b110 | 1 << 255
    assert not changed(after, after)


@pytest.fixture
def boards() -> Iterator[tuple[Board, Board]]:
    """The node's view of a board, and a worker's."""
    descriptor = Board.make(2, 3)
    try:
        yield Board(descriptor, 2, 3), Board(descriptor, 2, 3)
    finally:
        os.close(descriptor)


def test_board(boards: tuple[Board, Board]) -> None:
    node, worker = boards
    assert worker.generation == 0
    assert worker.states(0) == [BucketStates(), BucketStates()]
    first = [BucketStates(own=ALL), BucketStates(drain=1 << 255, adopt=1)]
    for states in (first, [BucketStates(), BucketStates(own=5)], first):
        generation = node.publish(states)
        assert worker.generation == generation
        assert worker.states(generation) == states
    before = node.generation
    node.publish([BucketStates(), BucketStates()])
    assert worker.states(before) == first, "what a worker may be reading is not written over"
    worker.beat(2, 7.25)
    worker.count_malformed(2)
    worker.count_malformed(2)
    assert (node.slot(2).beat, node.slot(2).malformed) == (7.25, 2)
    assert (node.slot(1).beat, node.slot(1).malformed) == (0.0, 0)
    assert worker.states(node.generation) == [BucketStates(), BucketStates()]


def script(*, queues: int = 1, statement: bool = True, hashing: bool = True) -> str:
    states = {"web": BucketStates(own=1 << 7, drain=1 << 8)}
    return open_script(POLICY, states, MARKS, ASKING, Queueing(5000, queues, statement, hashing))


def test_script_queues_by_the_statement_and_never_bypasses() -> None:
    assert "queue to 5000\n" in script()
    assert "queue to 5000-5003\n" in script(queues=4)
    for text in (script(queues=4), script(queues=4, statement=False)):
        assert "bypass" not in text
        assert "fanout" not in text, "a client's packets keep their order"
    assert "table ip " not in script()


def test_script_leaves_a_place_for_the_target() -> None:
    text = script(statement=False)
    assert "queue to" not in text
    for family in ("ip", "ip6"):
        (table,) = re.findall(rf"^table {family} nlbfarm_shop {{$(.*?)^}}$", text, re.MULTILINE | re.DOTALL)
        assert re.search(r"chain ask {\s+drop\s+}", table), "until the target is there, nothing passes"
        assert f"meta mark & {NONCE:#x} == {ASKING.ours:#x} goto ask" in table


@pytest.mark.parametrize("hashing", [True, False])
def test_script_hashes_only_where_the_kernel_can(hashing: bool) -> None:
    text = script(hashing=hashing)
    assert ("jhash" in text) is hashing
    assert ("map g0 {" in text) is hashing
    assert ("set g0_own4 {" in text) is not hashing
    assert f"{ASKING.mark(Kind.HASHED, 0, 7):#x} : goto g0_own" in text or not hashing
    for name in remembered(POLICY, hashing=hashing):
        assert f"set {name} {{" in text
        assert f"update @{name} {{" in text, "what is looked up is also written"
        assert f"@{name} " in text.replace(f"update @{name} ", ""), "what is written is also looked up"


def test_every_accepting_path_asks_the_lease() -> None:
    for hashing in (True, False):
        text = script(hashing=hashing, statement=False)
        for name, body in re.findall(r"chain (\S+) {(.*?)\n\t}", text, re.DOTALL):
            if "goto take" in body and name != "take":
                assert "meta nfproto != @lease" in body.split("goto take")[0], name


def test_what_comes_around_the_queue_is_dropped() -> None:
    (body,) = re.findall(r"chain judged {(.*?)\n\t}", script(), re.DOTALL)
    lines = [line.strip() for line in body.strip().splitlines()]
    assert lines[-1] == f"meta mark & {NONCE:#x} == {ASKING.ours:#x} drop"


def test_changes_name_marks() -> None:
    before, after = {"dns": BucketStates(own=0b11)}, {"dns": BucketStates(own=0b01, adopt=0b100)}
    (change,) = map_changes(POLICY, ASKING, before, after)
    assert change.name == "g2"
    assert change.gone == [ASKING.mark(Kind.HASHED, 2, 1)]
    assert change.come == {ASKING.mark(Kind.HASHED, 2, 2): "g2_adopt"}
    assert map_elements(ASKING, 2, BucketStates(drain=1)) == {ASKING.mark(Kind.HASHED, 2): "g2_drain"}


def test_more_groups_than_marks_tell_apart() -> None:
    groups = tuple(Group(f"g{index}", index) for index in range(257))
    many = FilterPolicy("shop", POLICY.vips, groups, ())
    with pytest.raises(UsageError, match="257 groups"):
        open_script(many, {}, MARKS, ASKING, Queueing(5000, 1, True, True))


def by_client(facts: PacketFacts, rule: Rule, group: Group) -> int:
    """A bucket function."""
    return facts.source.packed[-1]


def test_bucket_functions_go_by_name() -> None:
    reference = reference_of(by_client)
    assert reference == f"{__name__}:by_client"
    assert load_function(reference) is by_client
    NfqueueBackend(bucket=by_client)
    NfqueueBackend(bucket=reference)
    with pytest.raises(UsageError, match="cannot be imported by that name"):
        NfqueueBackend(bucket=lambda facts, rule, group: 0)


def test_the_configuration_allows_as_many_queues() -> None:
    assert configuration.MAX_QUEUES == MAX_QUEUES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queues": 0}, "give 1 to 16"),
        ({"queues": 17}, "give 1 to 16"),
        ({"path": "fast"}, '"auto", "kernel" or "python"'),
        ({"path": "kernel", "bucket": by_client}, "no bucket function but its own"),
        ({"bucket": "no.such:thing"}, "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NfqueueBackend(**arguments)  # type: ignore[arg-type]
