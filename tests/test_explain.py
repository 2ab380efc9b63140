"""Which node serves a client, and why; checked against the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.buckets import ALL, BUCKETS, NOBODY, BucketStates, owned_by
from nlbfarm.core.decision import PacketFacts, decide
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Protocol, Rule, Vip
from nlbfarm.errors import UsageError
from nlbfarm.explain import Knowledge, Question, explain, parse_question

VIP = ip_address("192.0.2.100")
VIP6 = ip_address("2001:db8::100")
POLICY = FilterPolicy(
    "shop",
    vips=(Vip(VIP, "eth0"), Vip(VIP6, "eth0", accept_uncovered=True)),
    groups=(Group("web", 1), Group("api", 2), Group("off", 3, Mode.BLOCKED)),
    rules=(
        Rule("web", "web", VIP, Protocol.TCP, (80, 443)),
        Rule("dns", "api", VIP, Protocol.UDP, (53,), Affinity.NETWORK),
        Rule("api", "api", VIP, Protocol.TCP, (8080,), Affinity.CLIENT),
        Rule("off", "off", VIP, Protocol.TCP, (21,)),
        Rule("web6", "web", VIP6, Protocol.TCP, (80,)),
    ),
)
PLACEMENT = tuple(1 + bucket % 2 for bucket in range(BUCKETS))
OWN = BucketStates(own=owned_by(PLACEMENT, 1))
KNOWLEDGE = Knowledge(
    POLICY,
    node=1,
    names={1: "web1", 2: "web2", 3: "web3"},
    placements={"web": PLACEMENT, "api": (2,) * BUCKETS},
    states={"web": OWN},
    lease_running=True,
)


def ask(client: str, service: str, knowledge: Knowledge = KNOWLEDGE) -> Mapping[str, object]:
    found = explain(parse_question(client, service), knowledge)
    assert json.loads(json.dumps(found)) == found
    return found


def test_a_client() -> None:
    found = ask("198.51.100.7:40000", "192.0.2.100:443")
    assert (found["rule"], found["group"], found["affinity"]) == ("web", "web", "client-port")
    assert found["key"] == "c63364079c400000"
    assert found["service"] == "192.0.2.100:443/tcp"
    bucket = found["bucket"]
    assert isinstance(bucket, int)
    assert found["owner"] == {"id": PLACEMENT[bucket], "name": f"web{PLACEMENT[bucket]}"}
    assert found["accepted_here"] is (PLACEMENT[bucket] == 1)


def test_the_port_matters_and_is_not_known() -> None:
    found = ask("198.51.100.7", "192.0.2.100:80")
    assert found["distribution"] == {"web1": 128, "web2": 128, "web3": 0}
    assert found["bucket"] is None
    assert found["reason"] == (
        'Affinity "client-port": the client\'s port decides, and each new connection has another. Name the '
        "port to know the node; over all ports the buckets are shared: web1 128 of 256, web2 128 of 256."
    )


def test_the_port_does_not_matter() -> None:
    found = ask("198.51.100.7", "192.0.2.100:8080")
    assert found["bucket"] == ask("198.51.100.7:5", "192.0.2.100:8080")["bucket"]
    assert found["owner"] == {"id": 2, "name": "web2"}
    assert str(found["reason"]).endswith(
        "belongs to web2 (the client's address decides, whatever its port); web1 drops it."
    )
    assert ask("198.51.100.7", "192.0.2.100:53/udp")["key"] == "c6336400"


@pytest.mark.parametrize(
    ("service", "accepted", "reason"),
    [
        ("192.0.2.1:80", None, "192.0.2.1 is not a virtual IP of farm shop: it is not filtered."),
        ("192.0.2.100:81", False, "No rule covers tcp port 81 of 192.0.2.100: every node drops it."),
        ("192.0.2.100:80/udp", False, "No rule covers udp port 80 of 192.0.2.100: every node drops it."),
        ("192.0.2.100:21", False, 'The group "off" is blocked: nobody serves it.'),
    ],
)
def test_no_bucket(service: str, accepted: bool | None, reason: str) -> None:
    found = ask("198.51.100.7:1", service)
    assert (found["accepted_here"], found["reason"], found["owner"]) == (accepted, reason, None)


def test_uncovered_may_be_accepted() -> None:
    found = ask("[2001:db8::7]:1", "[2001:db8::100]:81")
    assert (found["accepted_here"], found["service"]) == (True, "[2001:db8::100]:81/tcp")
    assert "every node accepts it" in str(found["reason"])


@pytest.mark.parametrize(
    ("states", "placement", "lease", "here", "reason"),
    [
        (
            BucketStates(own=ALL),
            1,
            True,
            "own",
            "belongs to web1, the node asked (the client's address and port decide); web1 accepts it.",
        ),
        (BucketStates(own=ALL), 1, False, "own", "web1 would accept it, but its lease has run out"),
        (BucketStates(adopt=ALL), 1, True, "adopt", "web1 is taking it over: it accepts new connections."),
        (
            BucketStates(drain=ALL),
            2,
            True,
            "drain",
            "web1 is giving it away: it serves the connections that it has",
        ),
        (BucketStates(), 1, True, "foreign", "web1 does not accept it yet: others have to release it first."),
        (BucketStates(), NOBODY, True, "foreign", "Nobody owns bucket"),
    ],
)
def test_states(states: BucketStates, placement: int, lease: bool, here: str, reason: str) -> None:
    knowledge = replace(
        KNOWLEDGE, states={"web": states}, placements={"web": (placement,) * BUCKETS}, lease_running=lease
    )
    found = ask("198.51.100.7:1", "192.0.2.100:80", knowledge)
    assert found["here"] == here
    assert reason in str(found["reason"])


def test_before_the_first_plan() -> None:
    found = ask("198.51.100.7:1", "192.0.2.100:80", replace(KNOWLEDGE, placements={}, states={}))
    assert found["owner"] is None
    assert ask("198.51.100.7", "192.0.2.100:80", replace(KNOWLEDGE, placements={}))["distribution"] == {
        "web1": 0,
        "web2": 0,
        "web3": 0,
    }


@given(
    client=st.ip_addresses(),
    port=st.integers(1, 65535),
    service_port=st.sampled_from([80, 443, 8080, 53, 21, 99]),
    protocol=st.sampled_from(Protocol),
    own=st.integers(0, ALL),
    lease=st.booleans(),
)
def test_agrees_with_the_oracle(client, port, service_port, protocol, own, lease) -> None:  # type: ignore[no-untyped-def]
    vip = VIP if client.version == 4 else VIP6
    states = {group.name: BucketStates(own=own) for group in POLICY.groups}
    found = explain(
        Question(client, port, vip, service_port, protocol),
        replace(KNOWLEDGE, states=states, lease_running=lease),
    )
    packet = PacketFacts("eth0", client, vip, protocol, port, service_port, syn=protocol is Protocol.TCP)
    decision = decide(POLICY, states, lease, packet)
    assert found["accepted_here"] is decision.accepted
    assert found["group"] == decision.group
    if decision.bucket is not None:
        assert found["bucket"] == decision.bucket


@pytest.mark.parametrize(
    ("client", "service", "message"),
    [
        ("example.org", "192.0.2.100:80", 'the client "example.org" is not an address'),
        ("198.51.100.7:99999", "192.0.2.100:80", "the client: port 99999 is not in 1..65535"),
        (
            "198.51.100.7",
            "192.0.2.100",
            'the service "192.0.2.100" has no port; write for example 192.0.2.100:443',
        ),
        ("198.51.100.7", "192.0.2.100:80/icmp", '"icmp" is no protocol that a rule can have'),
        ("198.51.100.7", "[2001:db8::1]:80", "198.51.100.7 is IPv4, but 2001:db8::1 is IPv6"),
        ("198.51.100.7:", "192.0.2.100:80", "is not an address"),
        ("198.51.100.7", "192.0.2.100:0", "port 0 is not in 1..65535"),
    ],
)
def test_questions_that_cannot_be_meant(client: str, service: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_question(client, service)
    assert message in str(caught.value)


def test_questions() -> None:
    assert parse_question("2001:db8::7", "[2001:db8::100]:53/UDP") == Question(
        ip_address("2001:db8::7"), None, VIP6, 53, Protocol.UDP
    )


@pytest.mark.parametrize("client", ["192.0.2.11", "192.0.2.100"])
def test_a_client_on_the_server_itself(client: str) -> None:
    local = replace(KNOWLEDGE, local=frozenset({ip_address("192.0.2.11"), VIP}))
    found = ask(f"{client}:5000", "192.0.2.100:80", local)
    assert found["accepted_here"] is True
    assert "served by the server itself" in str(found["reason"])


def test_a_bucket_function_is_asked_as_the_filter_asks_it() -> None:
    def by_last_byte(packet: PacketFacts, rule: Rule, group: Group) -> int:
        assert (packet.interface, packet.destination, packet.destination_port) == ("eth0", VIP, 443)
        assert (rule.name, group.seed) == ("web", 1)
        return int(packet.source) & 0xFF

    knowledge = replace(KNOWLEDGE, function=by_last_byte)
    found = ask("198.51.100.7:40000", "192.0.2.100:443", knowledge)
    assert (found["bucket"], found["key"]) == (7, None)
    assert "the bucket function says so" in str(found["reason"])
    found = ask("198.51.100.7", "192.0.2.100:443", knowledge)
    assert found["bucket"] is None
    assert "may go by the client's port" in str(found["reason"])


@pytest.mark.parametrize("answer", [256, -1, 1.0, "1", ValueError("no tenant")])
def test_a_bucket_function_that_fails_is_named(answer: object) -> None:
    def failing(packet: PacketFacts, rule: Rule, group: Group) -> int:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    with pytest.raises(UsageError, match="the bucket function"):
        ask("198.51.100.7:40000", "192.0.2.100:443", replace(KNOWLEDGE, function=failing))
