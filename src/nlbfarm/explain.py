"""Which node serves a client, and why, in words: the answer to ``nlbfarm-node explain``.

Pure: what a node knows goes in, a dictionary for JSON comes out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS, NOBODY, BucketState, BucketStates, Placement
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import Affinity, FilterPolicy, IPAddress, Mode, Protocol, Rule, Vip
from nlbfarm.errors import UsageError

__all__ = ["Knowledge", "Question", "explain", "parse_question"]


@dataclass(frozen=True)
class Question:
    """A packet that somebody wonders about.

    Args:
        client: Where it comes from.
        client_port: Its source port, if that is known.
        vip: Where it goes.
        port: Its destination port.
        protocol: TCP or UDP.
    """

    client: IPAddress
    client_port: int | None
    vip: IPAddress
    port: int
    protocol: Protocol


@dataclass(frozen=True)
class Knowledge:
    """What the node that is asked knows.

    Args:
        policy: What its filter enforces.
        node: Its id.
        names: Every node's name by id.
        placements: The owners of the buckets, by group, as in the newest plan it follows; a group
            that is missing has no plan yet.
        states: What its filter does with the buckets now, by group.
        lease_running: Whether its filter accepts at all.
        local: Addresses of the node itself, VIPs included: what comes from there does not pass the filter.
        function: The bucket function of a vendor's own that the filter goes by, if it does.
    """

    policy: FilterPolicy
    node: int
    names: Mapping[int, str]
    placements: Mapping[str, Placement]
    states: Mapping[str, BucketStates]
    lease_running: bool
    local: frozenset[IPAddress] = frozenset()
    function: BucketFunction | None = None


def parse_question(client: str, service: str) -> Question:
    """Read ``CLIENT[:PORT]`` and ``VIP:PORT[/udp]``; an IPv6 address with a port is in brackets.

    Raises:
        UsageError: They cannot be read.
    """
    address, port = _endpoint(client, "the client")
    service, _, protocol = service.partition("/")
    vip, service_port = _endpoint(service, "the service")
    if service_port is None:
        raise UsageError(f'the service "{service}" has no port; write for example {service}:443')
    if protocol.lower() not in ("", "tcp", "udp"):
        raise UsageError(f'"{protocol}" is no protocol that a rule can have; write /tcp or /udp')
    if address.version != vip.version:
        raise UsageError(f"{address} is IPv{address.version}, but {vip} is IPv{vip.version}")
    return Question(
        address, port, vip, service_port, Protocol.UDP if protocol.lower() == "udp" else Protocol.TCP
    )


_BRACKETS = re.compile(r"\[([^\]]*)\](?::(\d+))?")
_IPV4_PORT = re.compile(r"([0-9.]+):(\d+)")


def _endpoint(text: str, what: str) -> tuple[IPAddress, int | None]:
    match = _BRACKETS.fullmatch(text) or _IPV4_PORT.fullmatch(text)
    host, port_text = (match[1], match[2]) if match else (text, None)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(
            f'{what} "{text}" is not an address like 198.51.100.7, 198.51.100.7:40000 or [2001:db8::7]:40000'
        ) from None
    if port_text is None:
        return address, None
    port = int(port_text)
    if not 1 <= port <= 65535:
        raise UsageError(f"{what}: port {port} is not in 1..65535")
    return address, port


def explain(question: Question, knowledge: Knowledge) -> dict[str, Any]:
    """Say which rule a packet falls under, its bucket, that bucket's owner, and what this node does.

    Returns:
        ``client``, ``client_port``, ``service``, ``rule``, ``group``, ``affinity``, ``key`` (hex),
        ``bucket``, ``owner`` (``{"id", "name"}`` or ``null``), ``here`` (state of the bucket in this
        node's filter: ``own``, ``adopt``, ``drain`` or ``foreign``), ``accepted_here`` (of a new
        connection), ``reason`` (a sentence) and, if the client's port matters and is not known,
        ``distribution``: buckets by node. What has no value is ``null``.
    """
    policy = knowledge.policy
    protocol = question.protocol.name.lower()
    answer: dict[str, Any] = {
        "client": str(question.client),
        "client_port": question.client_port,
        "service": f"{_bracketed(question.vip)}:{question.port}/{protocol}",
        "rule": None,
        "group": None,
        "affinity": None,
        "key": None,
        "bucket": None,
        "owner": None,
        "here": None,
        "accepted_here": None,
        "distribution": None,
        "reason": "",
    }
    vip = next((vip for vip in policy.vips if vip.address == question.vip), None)
    if vip is None:
        answer["reason"] = f"{question.vip} is not a virtual IP of farm {policy.farm}: it is not filtered."
        return answer
    if question.client in knowledge.local:
        answer["accepted_here"] = True
        answer["reason"] = (
            f"{question.client} is an address of {knowledge.names[knowledge.node]}, the node asked: "
            "what comes from the server itself is served by the server itself, whoever owns the bucket."
        )
        return answer
    rule = _rule(policy, question)
    if rule is None:
        answer["accepted_here"] = vip.accept_uncovered and knowledge.lease_running
        does = "every node accepts it" if vip.accept_uncovered else "every node drops it"
        answer["reason"] = f"No rule covers {protocol} port {question.port} of {question.vip}: {does}."
        return answer
    answer |= {"rule": rule.name, "group": rule.group, "affinity": rule.affinity.value}
    if policy.group(rule.group).mode is Mode.BLOCKED:
        answer |= {
            "accepted_here": False,
            "reason": f'The group "{rule.group}" is blocked: nobody serves it.',
        }
        return answer
    own = knowledge.function is not None  # nobody knows what that goes by
    if (own or rule.affinity is Affinity.CLIENT_PORT) and question.client_port is None:
        answer |= _any_port(rule, knowledge)
        return answer
    answer |= _one_bucket(rule, vip, question, knowledge)
    return answer


def _rule(policy: FilterPolicy, question: Question) -> Rule | None:
    for rule in policy.rules:
        if rule.vip == question.vip and rule.protocol is question.protocol and question.port in rule.ports:
            return rule
    return None


def _any_port(rule: Rule, knowledge: Knowledge) -> dict[str, Any]:
    placement = knowledge.placements.get(rule.group, ())
    counts = {name: placement.count(node) for node, name in knowledge.names.items()}
    shares = ", ".join(f"{name} {count} of 256" for name, count in counts.items() if count) or "nobody"
    why = f'Affinity "{rule.affinity}": the client\'s port decides, and each new connection has another'
    if knowledge.function is not None:
        why = "A bucket function decides, which may go by the client's port"
    return {
        "distribution": counts,
        "reason": (
            f"{why}. Name the port to know the node; over all ports the buckets are shared: {shares}."
        ),
    }


_AFFINITY = {
    Affinity.CLIENT_PORT: "the client's address and port decide",
    Affinity.CLIENT: "the client's address decides, whatever its port",
    Affinity.NETWORK: "the client's network (/24, /64) decides",
}


def _asked(function: BucketFunction, rule: Rule, vip: Vip, question: Question, policy: FilterPolicy) -> int:
    """Ask a vendor's function for a bucket."""
    syn = question.protocol is Protocol.TCP
    port = question.client_port
    packet = PacketFacts(
        vip.interface, question.client, question.vip, question.protocol, port, question.port, syn=syn
    )
    try:
        bucket = function(packet, rule, policy.group(rule.group))
    except Exception as error:
        raise UsageError(f"the bucket function raised {type(error).__name__}: {error}") from error
    if type(bucket) is not int or not 0 <= bucket < BUCKETS:
        raise UsageError(f"the bucket function returned no int of 0..{BUCKETS - 1}: such packets are dropped")
    return bucket


def _one_bucket(rule: Rule, vip: Vip, question: Question, knowledge: Knowledge) -> dict[str, Any]:
    key = flow_key(rule.affinity, question.client, question.client_port or 0)
    why = _AFFINITY[rule.affinity]
    if knowledge.function is None:
        bucket = bucket_of(key, knowledge.policy.group(rule.group).seed)
    else:
        bucket = _asked(knowledge.function, rule, vip, question, knowledge.policy)
        why = "the bucket function says so"
    placement = knowledge.placements.get(rule.group)
    owner = placement[bucket] if placement else NOBODY
    state = knowledge.states.get(rule.group, BucketStates()).state(bucket)
    accepted = knowledge.lease_running and state in (BucketState.OWN, BucketState.ADOPT)
    here = knowledge.names[knowledge.node]
    name = knowledge.names.get(owner, str(owner))
    if owner == NOBODY:
        who = f"Nobody owns bucket {bucket} of group {rule.group} now"
    elif owner == knowledge.node:
        who = f"Bucket {bucket} of group {rule.group} belongs to {name}, the node asked"
    else:
        who = f"Bucket {bucket} of group {rule.group} belongs to {name}"
    return {
        "key": key.hex() if knowledge.function is None else None,
        "bucket": bucket,
        "owner": None if owner == NOBODY else {"id": owner, "name": name},
        "here": state.name.lower(),
        "accepted_here": accepted,
        "reason": f"{who} ({why}); {_what_here(here, state, owner, knowledge)}.",
    }


def _what_here(here: str, state: BucketState, owner: int, knowledge: Knowledge) -> str:
    if state is BucketState.FOREIGN:
        if owner == knowledge.node:
            return f"{here} does not accept it yet: others have to release it first"
        return f"{here} drops it"
    if not knowledge.lease_running:
        return f"{here} would accept it, but its lease has run out, so it drops everything"
    if state is BucketState.DRAIN:
        return f"{here} is giving it away: it serves the connections that it has, and takes no new ones"
    if state is BucketState.ADOPT:
        return f"{here} is taking it over: it accepts new connections"
    return f"{here} accepts it"


def _bracketed(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
