"""What a running node answers on its control socket (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nlbfarm.api.control import HANDLER_SECONDS, Handler
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import UsageError
from nlbfarm.events import Journal, answer_events
from nlbfarm.explain import Knowledge, explain, parse_question
from nlbfarm.runtime import Runtime, Verb
from nlbfarm.status import status

__all__ = ["verbs"]

ORDER_S = HANDLER_SECONDS - 2.0
"""So long another node may take to begin what it was told."""


def verbs(
    runtime: Runtime,
    local: frozenset[IPAddress],
    reload: Callable[[bool], Awaitable[dict[str, Any]]],
    journal: Journal | None = None,
) -> dict[str, Handler]:
    """Return what answers each verb.

    Args:
        runtime: The node.
        local: Addresses of the host itself.
        reload: Reloads the configuration; told whether only to say what would change.
        journal: Where events are kept.
    """

    async def answer_status(args: Mapping[str, Any]) -> dict[str, Any]:
        return await status(runtime)

    async def answer_explain(args: Mapping[str, Any]) -> dict[str, Any]:
        client, service = args.get("client"), args.get("service")
        if not isinstance(client, str) or not isinstance(service, str):
            raise UsageError('explain takes "client" and "service", both text')
        return explain(parse_question(client, service), _knowledge(runtime, local))

    async def answer_reload(args: Mapping[str, Any]) -> dict[str, Any]:
        dry_run = args.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise UsageError('"dry_run" of reload must be true or false')
        return await reload(dry_run)

    async def answer_order(args: Mapping[str, Any]) -> dict[str, Any]:
        number = args.get("number")
        if not isinstance(number, int):
            raise UsageError('order takes "number", the number of an order that this node gave')
        given = runtime.remote.given(number)
        ended = given.ended.value if given.ended is not None else None
        return {"number": number, "text": given.text, "ended": ended}

    def command(name: str) -> Handler:
        async def answer(args: Mapping[str, Any]) -> dict[str, Any]:
            rest = {key: value for key, value in args.items() if key != "node"}
            return await _command(runtime, args.get("node"), Verb.of(name, rest))

        return answer

    return {
        "status": answer_status,
        "explain": answer_explain,
        "reload": answer_reload,
        "order": answer_order,
        "events": answer_events(runtime.log.stream, journal),
        **{name: command(name) for name in Verb.NAMES},
    }


async def _command(runtime: Runtime, target: object, verb: Verb) -> dict[str, Any]:
    """Carry a command out here, or have another node do it."""
    node = runtime.running()
    number = _node(target, node.settings.nodes, node.settings.node)
    if verb.name == "failback" and target is None:
        # Who leads decides where buckets are.
        number = node.leader(runtime.parts.clock.monotonic()) or number
    name = node.settings.nodes[number]
    answer: dict[str, Any] = {"node": {"id": number, "name": name}, "order": None}
    if number == node.settings.node:
        return answer | {"detail": await runtime.administration.carry_out(verb)}
    given = await runtime.remote.give(number, name, verb, ORDER_S)
    return answer | {"order": given.number, "detail": given.text}


def _node(target: object, names: Mapping[int, str], own: int) -> int:
    """Return the id of the node that a caller means by its name, its id, or by nothing: this one."""
    if target is None:
        return own
    for number, name in names.items():
        if target == name or (target == number and not isinstance(target, bool)):
            return number
    raise UsageError(f"there is no node {target!r:.40} (there: {', '.join(names.values())})")


def _knowledge(runtime: Runtime, local: frozenset[IPAddress]) -> Knowledge:
    parts, node = runtime.parts, runtime.running()
    plan = node.membership.plan
    groups = parts.settings.groups
    return Knowledge(
        policy=parts.policy,
        node=parts.settings.node,
        names=node.settings.nodes,
        placements=dict(zip(groups, plan.placements, strict=True)) if plan is not None else {},
        states=dict(zip(groups, node.applied, strict=True)),
        lease_running=node.lease_until > parts.clock.monotonic(),
        local=local,
        function=parts.function,
    )
