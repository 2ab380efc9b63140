"""Writes the parts of docs/protocol.md that follow from the code: messages, tables, diagram, numbers.

    python scripts/protocol_doc.py            # rewrites them
    python scripts/protocol_doc.py --check    # exit code 1 if they are not what the code says

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the text around it is by hand.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

from nlbfarm.core import (
    handoff,
    hearing,
    lateness,
    leaving,
    node,
    order_messages,
    orders,
    plans,
    solitude,
    wire,
)
from nlbfarm.core import versions as spoken
from nlbfarm.core.buckets import BucketState, BucketStates
from nlbfarm.core.condition import Condition
from nlbfarm.core.decision import ICMP, IcmpKind, PacketFacts, decide
from nlbfarm.core.lease import SILENT_INTERVALS, died, lease_end, peer_limit
from nlbfarm.core.messages import MAX_EPOCH
from nlbfarm.core.policy import FilterPolicy, Group, Mode, Protocol, Rule, Vip
from nlbfarm.core.settings import Admin, Settings
from nlbfarm.core.wire import Epoch, Heartbeat, Member, NodeState, View
from nlbfarm.testing.invariants import Invariants

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"

_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


# -- messages ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Bytes of a message: ``size`` of them, as often as ``times`` says."""

    name: str
    size: int
    times: str = ""

    def __str__(self) -> str:
        size = f"{self.size} x {self.times}" if self.times and self.size > 1 else self.times or str(self.size)
        return f"`{self.name}` {size}"


def sizes(form: str) -> Iterator[int]:
    """Yield the bytes of each item of a ``struct`` format without padding."""
    for count, kind in re.findall(r"(\d*)([BHQs])", form):
        if kind == "s":
            yield int(count or 1)
        else:
            yield from [{"B": 1, "H": 2, "Q": 8}[kind]] * int(count or 1)


def fixed(form: str, names: str) -> list[Part]:
    return [Part(name, size) for name, size in zip(names.split(), sizes(form), strict=True)]


def layouts() -> dict[str, tuple[int, list[Part]]]:
    """Return the type number and the body of each message, in the order of its bytes."""
    life = "sender incarnation "
    beat = fixed(
        wire._BEAT.format,
        life + "sequence config_digest secret_digest state flags known_epoch.counter known_epoch.leader "
        "reason_bytes member_count echo_count group_count",
    )
    beat += [
        Part("reason", 1, "reason_bytes"),
        Part("view.epoch", plans.EPOCH.size, "(1 with a view, else 0)"),
        Part("view.members", plans.MEMBER.size, "member_count"),
        Part("echoes", wire._ECHO.size, "echo_count"),
        Part("powers", 2, "group_count"),
        Part("holding", wire._BITMAP, "group_count"),
        Part("draining", wire._BITMAP, "group_count"),
        Part("plan_digest", plans.DIGEST, "(1 inside, else 0)"),
        Part("plan", plans.packed_size(1), "(group_count x bits of member_count, with flag PLAN)"),
    ]
    chunk = fixed(wire._CHUNK_HEAD.format, life + "digest index count")
    target = life + "target target_incarnation "
    order = fixed(order_messages._ORDER_HEAD.format, target + "target_sequence number verb_bytes")
    answer = fixed(order_messages._ANSWER_HEAD.format, target + "number state")
    return {
        "Heartbeat": (wire._HEARTBEAT, beat),
        "PlanRequest": (wire._REQUEST, fixed(wire._REQUEST_BODY.format, life + "digest first")),
        "PlanChunk": (wire._CHUNK_OF_PLAN, [*chunk, Part("data", 1, "(the rest)")]),
        "Order": (wire._ORDER, [*order, Part("verb", 1, "verb_bytes"), Part("argument", 1, "(the rest)")]),
        "OrderAnswer": (wire._ORDER_ANSWER, [*answer, Part("text", 1, "(the rest)")]),
    }


def datagram() -> str:
    header = fixed(wire._HEADER.format, "magic version type key_id farm")
    parts = ", ".join(str(part) for part in header)
    return f"{parts}, body, {Part('tag', wire._TAG)}; at most {wire.MAX_DATAGRAM} bytes in all."


def bodies() -> str:
    rows = []
    for name, (kind, parts) in layouts().items():
        since = "2" if kind >= wire._ORDER else "1"
        rows.append([str(kind), f"`{name}`", since, ", ".join(str(part) for part in parts)])
    flags = {"ANSWER_NOW": wire._ANSWER_NOW, "INSIDE": wire._INSIDE, "PLAN": wire._PLAN}
    named = ", ".join(f"{bit} `{name}`" for name, bit in flags.items())
    shift = wire._FITNESS_SHIFT
    named += f"; bits {shift} and {shift + 1}, from version {wire._FITNESS} on: `Fitness`"
    states = ", ".join(f"{state.value} `{state.name}`" for state in wire.OrderState)
    head = ["type", "message", "since version", "body: fields in order, with their bytes"]
    return f"{table(head, rows)}\n\nFlags of a heartbeat: {named}. States of an order: {states}."


def meanings(*classes: type) -> str:
    """Return the fields of messages with what their docstrings say; every field must be there."""
    rows = []
    for kind in classes:
        doc = inspect.getdoc(kind) or ""
        entries = re.findall(r"^    ([a-z_, ]+): (.*(?:\n {8}.*)*)", doc.partition("Args:")[2], re.MULTILINE)
        named = [name for names, _ in entries for name in names.split(", ")]
        assert named == [field.name for field in fields(kind)], f"{kind.__name__}: {named}"
        for names, text in entries:
            words = " ".join(text.replace("``", "`").split())
            rows.append([f"`{kind.__name__}`", ", ".join(f"`{name}`" for name in names.split(", ")), words])
    return table(["message", "field", "meaning"], rows)


def limits() -> str:
    def most_groups(nodes: int) -> int:
        return next(
            n for n in range(wire.MAX_GROUPS, 0, -1) if wire.largest_heartbeat(nodes, n) <= wire.MAX_DATAGRAM
        )

    groups = ", ".join(f"{most_groups(nodes)} with {nodes} nodes" for nodes in (2, 8, 16, wire.MAX_NODES))
    rows = [
        ["nodes", f"{wire.MAX_NODES}, ids 1 to 255"],
        ["groups, so that a heartbeat without its plan always fits", groups],
        ["reason of a heartbeat", f"{wire.MAX_REASON} bytes of UTF-8"],
        ["plan", f"{wire.MAX_CHUNKS} chunks of {wire.CHUNK} bytes"],
        [
            "order: verb, argument; text of an answer",
            f"{wire.MAX_VERB}, {wire.MAX_ARGUMENT}; {wire.MAX_TEXT} bytes",
        ],
        [
            "orders without an outcome: given by a node; taken from one",
            f"{orders.MOST_GIVEN}; {orders.MOST_TAKEN}",
        ],
        ["age of the heartbeat that an order names", f"{orders.FRESH} heartbeats"],
        [
            "incarnation, epoch counter",
            f"below 2^{MAX_EPOCH.bit_length() - 1}; a word with a higher one is ignored",
        ],
    ]
    return table(["what", "at most"], rows)


def negotiation() -> str:
    rows = [
        ["versions spoken", f"{wire.OLDEST} to {wire.VERSION}"],
        [
            "copies in the newest version with the first heartbeats to each life of a peer",
            str(spoken.EAGER_COPIES),
        ],
        ["after that, one copy every", seconds(spoken.COPY_S)],
        [
            "a life not heard in the newest version for so long counts as not speaking it",
            seconds(spoken.SETTLED_S),
        ],
        ["first version that adopts what another drains", str(node.ADOPTS)],
        ["first version with orders", str(wire._ORDERS)],
        ["first version with the fitness of a node", str(wire._FITNESS)],
    ]
    return table(["what", "value"], rows)


# -- states --------------------------------------------------------------------------------

_STATE_MEANS = {
    NodeState.STOP: (
        "Has left its view: owns and accepts nothing, and is not taken in. The last words of a process that "
        "ends; one that the administrator stopped goes on saying it until `start`."
    ),
    NodeState.STARTING: (
        "Does not know yet whether what it needs is there. May be a member; gets no buckets, forms no view."
    ),
    NodeState.WAIT: (
        "Something that it needs is down, or it hears nobody though all hosts answer. As `STARTING`; as long "
        "as it is a member its connections are served to their end."
    ),
    NodeState.UP: (
        "Can serve: gets buckets by its powers after a detection time in the view. It does not say that the "
        "node *is* in a view."
    ),
    NodeState.DRAINING: (
        "Gets no buckets; stays a member, and so keeps its lease, as long as its connections last."
    ),
}


def node_states() -> str:
    def of(condition: Condition, *, closed: bool = False, deaf: bool = False) -> tuple[NodeState, str]:
        return condition.state(closed=closed, deaf=deaf)

    waiting = Condition(1, ["page"])
    down = Condition(1, ["page"])
    down.learn("page", False, "the reason of what is down")
    stopping, returning = Condition(1, []), Condition(1, [])
    stopping.stopping = returning.stopping = returning.returning = True
    seen = [
        of(stopping, closed=True),
        of(Condition(1, [], Admin.STOP), closed=True),
        of(waiting),
        of(down),
        of(Condition(1, []), deaf=True),
        of(Condition(1, [])),
        of(Condition(1, [], Admin.DRAIN)),
        of(Condition(1, [], Admin.STOP)),
        of(stopping),
        of(returning),
    ]
    rows = []
    for state in NodeState:
        reasons = "; ".join(f"*{reason}*" if reason else "(none)" for known, reason in seen if known is state)
        rows.append([f"{state.value}", f"`{state.name}`", _STATE_MEANS[state], reasons])
    return table(["wire", "state", "meaning", "reasons"], rows)


def decision_table() -> str:
    vip, client = IPv4Address("192.0.2.100"), IPv4Address("198.51.100.7")
    rules = tuple(Rule(p.name, "web", vip, p, (80,)) for p in (Protocol.TCP, Protocol.UDP))
    policy = FilterPolicy("shop", (Vip(vip, "eth0"),), (Group("web", 1),), rules)

    tcp = PacketFacts("eth0", client, vip, Protocol.TCP, 40000, 80)
    packets = [
        replace(tcp, syn=True),
        replace(tcp, ack=True, established_here=True),
        replace(tcp, ack=True),
        replace(tcp, protocol=Protocol.UDP),
        PacketFacts("eth0", client, vip, ICMP, icmp=IcmpKind.ECHO_REQUEST),
    ]
    everything = (1 << 256) - 1
    rows = []
    for state in sorted(BucketState, reverse=True):
        name = state.name.lower()
        states = {
            "web": BucketStates() if state is BucketState.FOREIGN else BucketStates(**{name: everything})
        }
        cells = [decide(policy, states, True, one).verdict.value for one in packets]
        without = {decide(policy, states, False, one).verdict.value for one in packets}
        assert without == {"drop"}, "nothing is accepted without a lease"
        rows.append([f"`{state.name}`", *cells])
    return table(
        [
            "state",
            "TCP, new flow",
            "TCP, established here",
            "TCP, any other packet",
            "UDP",
            "ICMP echo request",
        ],
        rows,
    )


_FACTS = ("kept", "gained", "contested", "flows")


def transition_table() -> str:
    def word(fact: bool | None) -> str:
        return {True: "yes", False: "no", None: "any"}[fact]

    rows = [
        [
            " or ".join(f"`{state.name}`" for state in sorted(row.before, reverse=True)),
            *(word(getattr(row, fact)) for fact in _FACTS),
            f"`{row.after.name}`",
        ]
        for row in handoff.TRANSITIONS
    ]
    return table(["before", *_FACTS, "after"], rows)


def diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> FOREIGN: start"]
    for row in handoff.TRANSITIONS:
        known = [(fact, getattr(row, fact)) for fact in _FACTS]
        label = ", ".join(fact if value else f"not {fact}" for fact, value in known if value is not None)
        lines += [
            f"    {before.name} --> {row.after.name}: {label}"
            for before in sorted(row.before)
            if before is not row.after
        ]
    return "\n".join([*lines, "```"])


# -- invariants ----------------------------------------------------------------------------

_ENFORCED: dict[str, tuple[Callable[..., object], str]] = {
    "I1": (
        Invariants.one_server,
        "handoff.acquirable handoff.everybody_knows membership.Membership.step hearing.Hearing.arrived",
    ),
    "I2": (Invariants.no_hole, "membership.Membership.step placement.place solitude.Solitude.alone"),
    "I3": (
        Invariants.no_broken_connection,
        "handoff.Handoff.change hearing.Hearing.contested leaving.Leaving.step",
    ),
    "I4": (
        Invariants.fencing,
        "lease.lease_end lease.peer_limit lateness.Lateness.made_sure node.Node.handle",
    ),
}


def invariants(enforced: Mapping[str, tuple[Callable[..., object], str]] = _ENFORCED) -> str:
    rows = []
    for rule, (method, places) in enforced.items():
        stated, *_ = re.split(r"^(?:Args|Returns):", inspect.getdoc(method) or "", flags=re.MULTILINE)
        wording = " ".join(stated.replace("``", "`").split())
        name, _, wording = wording.partition(": ")
        assert name == rule, f"{method.__name__} states {name}"
        for place in places.split():
            resolve(place)
        rows.append([f"**{rule}**", wording, ", ".join(f"`{place}`" for place in places.split())])
    return table(["", "what holds", "enforced in `nlbfarm.core`"], rows)


def resolve(place: str) -> object:
    """Return what ``module.name``, ``module.Class.name`` or ``package.module.name`` of the core is."""
    module, *names = place.split(".")
    found: object = importlib.import_module(f"nlbfarm.core.{module}")
    for name in names:
        if isinstance(found, ModuleType) and not hasattr(found, name):
            found = importlib.import_module(f"{found.__name__}.{name}")
        else:
            found = getattr(found, name)
    return found


# -- times ---------------------------------------------------------------------------------


def settings(interval: float, lost_after: int, lease: float) -> Settings:
    """Return settings of a farm of three with these times."""
    names = {1: "web1", 2: "web2", 3: "web3"}
    usual = Settings(1, names, ("web",), (Mode.BALANCED,), (1,))
    return replace(usual, interval=interval, lost_after=lost_after, lease=lease)


_USUAL = Settings(1, {1: "web1"}, (), (), ())
PROFILES = {
    "default": settings(_USUAL.interval, _USUAL.lost_after, _USUAL.lease),
    "fast": settings(0.03, 5, 0.09),
}


def seconds(value: float) -> str:
    return f"{round(value, 6):g} s" if value >= 1 else f"{round(value * 1e3, 3):g} ms"


def peer() -> hearing.Peer:
    """Return a peer inside a view that was heard at time 0, and acknowledged what was sent then."""
    view = View(Epoch(1, 2), (Member(2, 1),))
    who = 2, 1, 1, bytes(8), bytes(8), NodeState.UP, "", False
    word = Heartbeat(*who, view.epoch, True, view, None, bytes(16), (), (1,), (1,), (0,))
    known = hearing.Peer(2, word, 0.0)
    known.acked_at = 0.0
    return known


def first_ms(holds: Callable[[float], bool]) -> float:
    """Return the first whole millisecond, in seconds, at which ``holds`` is true."""
    return next(ms / 1e3 for ms in range(1, 100_000) if holds(ms / 1e3))


def times(one: Settings) -> list[tuple[str, str, float]]:
    """Return what takes how long by which formula, as the functions of the core say it."""
    known, ears = peer(), hearing.Hearing(one, 0.0)
    lost = ears.lost_at(known)
    lease = lease_end([known], 0.0, one)
    fenced = peer_limit(known, 0.0, one)
    assert fenced is not None
    interval, silence = one.interval, solitude.SILENCE_BEFORE_PROBE
    # In a quiet farm the newest acknowledgement at a turn is at most two intervals old.
    hung = lost - min(lease, fenced - 2 * interval)
    dead = first_ms(lambda now: died(known, now, one))
    overdue = first_ms(lambda now: ears.overdue(known, now)) - 0.001
    doubt = first_ms(lambda late: lateness.Lateness(one, ears, 0.0).judge(late, late) is not None)
    probed = max(lost, solitude.PROBE_WAIT_S)
    steps = "(+ exchange + filter change)"
    hangs = f"max(detection - lease, {SILENT_INTERVALS:g} x interval) {steps}"
    alone = f"max(detection, {seconds(solitude.PROBE_WAIT_S)}) + detection"
    return [
        ("*detection time*: a peer is lost after its newest heartbeat", "interval x lost_after", lost),
        ("lease, at most, from the turn that renews it", "lease", lease),
        ("lease, from the sending of what a peer acknowledged", "detection - interval / 2", fenced),
        ("from that end until the peer may take over, at least", "interval / 2", lost - fenced),
        ("crash: noticed at the earliest", "detection - interval", lost - interval),
        ("crash: a bucket is unserved, at most", f"detection {steps}", lost),
        ("`kill -9`, freeze: unserved after the lease's end, at most", hangs, hung),
        ("a peer that acknowledged to the last is dead after", f"{SILENT_INTERVALS:g} x interval", dead),
        ("an acknowledgement is asked for when older than", "2 x interval", overdue),
        ("a turn late by so much makes a node doubt itself", "max(lease - interval, interval)", doubt),
        ("join: first buckets, at most", "interval + detection (+ 2 exchanges)", interval + lost),
        ("cold start of a farm", "2 x detection (+ exchange)", 2 * lost),
        ("start of a node that hears nobody, of three or more, at most", alone, probed + lost),
        ("leaving: heirs are waited for", f"{leaving.PATIENCE} x detection", leaving.PATIENCE * lost),
        ("all silent: their hosts are probed after", f"{silence} x interval", silence * interval),
        ("a silent node's buckets are adopted for", "takeover_grace", ears.grace(known)),
        ("the same, of one that said that it returns", "restart_grace", one.restart_grace),
        ("a drain, at most", "drain_timeout", one.drain_timeout),
        ("a drain: flows are counted again after", "fixed", handoff.FLOWS_AGAIN_S),
    ]


def timing() -> str:
    columns = [times(one) for one in PROFILES.values()]
    rows = [[*row[0][:2], *(seconds(value) for *_, value in row)] for row in zip(*columns, strict=True)]
    heads = [
        f"{name}: {seconds(one.interval)}, {one.lost_after}, {seconds(one.lease)}"
        for name, one in PROFILES.items()
    ]
    return table(["what", "formula", *heads], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "datagram": datagram,
    "bodies": bodies,
    "heartbeat": lambda: meanings(wire.Heartbeat),
    "orders": lambda: meanings(wire.Order, wire.OrderAnswer),
    "limits": limits,
    "versions": negotiation,
    "node-states": node_states,
    "decision": decision_table,
    "transitions": transition_table,
    "diagram": diagram,
    "invariants": invariants,
    "timing": timing,
}


def rewrite(text: str, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> str:
    """Return ``text`` with every generated part as the code has it now.

    Raises:
        ValueError: The parts in ``text`` are not those that are generated.
    """
    names = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(blocks):
        raise ValueError(f"generated parts: {sorted(names)}; expected {sorted(blocks)}")
    return _BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]()}\n{match[3]}", text)


def main(
    arguments: Sequence[str] | None = None,
    page: Path = PAGE,
    blocks: Mapping[str, Callable[[], str]] = BLOCKS,
    command: str = "python scripts/protocol_doc.py",
) -> int:
    parser = argparse.ArgumentParser(description=f"Writes the generated parts of docs/{page.name}.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    parser.add_argument("--page", type=Path, default=page, help="another page")
    options = parser.parse_args(arguments)
    text = options.page.read_text(encoding="utf-8")
    fresh = rewrite(text, blocks)
    if fresh == text:
        return 0
    if options.check:
        print(f"{options.page}: out of date; run {command}", file=sys.stderr)
        return 1
    options.page.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
