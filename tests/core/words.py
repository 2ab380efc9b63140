"""Building heartbeats for tests in one line."""

from __future__ import annotations

from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Echo, Epoch, Heartbeat, Member, NodeState, Plan, View, plan_digest

NONE = Epoch()
NAMES = {1: "web1", 2: "web2", 3: "web3"}


def settings(node: int = 1, **changes: object) -> Settings:
    """Return settings of a three-node farm with one group."""
    from nlbfarm.core.policy import Mode

    values: dict[str, object] = {
        "node": node,
        "nodes": NAMES,
        "groups": ("web",),
        "modes": (Mode.BALANCED,),
        "powers": (1,),
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def plan(counter: int, members: dict[int, int], owner: int | tuple[int, ...] = 0, leader: int = 0) -> Plan:
    """Return a plan of ``members`` (id to incarnation) in which ``owner`` has all 256 buckets."""
    view = View(
        Epoch(counter, leader or min(members)),
        tuple(Member(node, incarnation) for node, incarnation in sorted(members.items())),
    )
    placement = owner if isinstance(owner, tuple) else (owner,) * 256
    return Plan(view, (placement,))


def word(
    sender: int,
    sequence: int = 1,
    *,
    incarnation: int = 1,
    follows: Plan | None = None,
    defers: View | None = None,
    known: Epoch = NONE,
    hears: dict[int, tuple[int, int]] | None = None,
    state: NodeState = NodeState.UP,
    holding: int = 0,
    draining: int = 0,
    answer_now: bool = False,
    config_digest: bytes = bytes(8),
) -> Heartbeat:
    """Return a heartbeat; ``hears``: node to (incarnation, sequence)."""
    return Heartbeat(
        sender=sender,
        incarnation=incarnation,
        sequence=sequence,
        config_digest=config_digest,
        secret_digest=bytes(8),
        state=state,
        reason="",
        answer_now=answer_now,
        known_epoch=max(known, follows.view.epoch) if follows is not None else known,
        inside=follows is not None,
        view=follows.view if follows is not None else defers,
        plan=follows,
        plan_digest=plan_digest(follows) if follows is not None else None,
        echoes=tuple(Echo(node, *life) for node, life in sorted((hears or {}).items())),
        powers=(1,),
        holding=(holding,),
        draining=(draining,),
    )
