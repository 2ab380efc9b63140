"""The scripts that the nftables backend hands to the kernel, as text; the kernel itself: tests/netns."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.backends.marks import LEASES_MS, Marks, lease_step
from nlbfarm.backends.netlink import MapChange
from nlbfarm.backends.render import changes, elements, open_script
from nlbfarm.backends.ruleset import close_script, counter_names, table_name
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Protocol, Rule, Vip

GOLDEN = Path(__file__).parent.parent / "data" / "nftables-table.nft"
MARKS = Marks(0x6E6C6)
VIP = ip_address("192.0.2.100")
VIP6 = ip_address("2001:db8::64")
POLICY = FilterPolicy(
    "shop",
    (Vip(VIP, "eth0"), Vip(VIP6, "eth0", accept_uncovered=True)),
    (Group("web", 0x12345678), Group("admin", 7, Mode.BLOCKED)),
    (
        Rule("web", "web", VIP, Protocol.TCP, (80, 443)),
        Rule("dns", "web", VIP, Protocol.UDP, (53,), Affinity.NETWORK),
        Rule("ssh", "admin", VIP, Protocol.TCP, (22,), Affinity.CLIENT),
        Rule("web6", "web", VIP6, Protocol.TCP, (80,), Affinity.CLIENT),
    ),
)
STATES = {"web": BucketStates(own=0b111, adopt=0b1000, drain=0b10000)}
CHAIN = re.compile(r"\tchain (\w+) \{\n(.*?)\n\t\}", re.DOTALL)


def test_a_table_is_rendered_as_written_down() -> None:
    """After a change that is meant: ``NLBFARM_WRITE_GOLDEN=1 pytest tests/backends/test_render.py``."""
    script = open_script(POLICY, STATES, MARKS)
    if os.environ.get("NLBFARM_WRITE_GOLDEN"):
        GOLDEN.write_text(script)
    assert script == GOLDEN.read_text()


def test_a_leftover_table_is_replaced_in_the_same_transaction() -> None:
    script = open_script(POLICY, {}, MARKS)
    assert script.startswith(
        "add table inet nlbfarm_shop\ndelete table inet nlbfarm_shop\ntable inet nlbfarm_shop {\n"
    )
    assert close_script("shop") == "add table inet nlbfarm_shop\ndelete table inet nlbfarm_shop\n"


def test_every_accepting_path_looks_the_lease_up() -> None:
    """Whatever reaches ``take``, or is given a mark that goes on past conntrack, met the lease before."""
    chains = {name: body.split("\n") for name, body in CHAIN.findall(open_script(POLICY, STATES, MARKS))}
    asks = {name for name, rules in chains.items() if "nfproto != @lease" in "\n".join(rules)}
    assert asks == {"uncovered_accept", "icmp_error", "g0_own", "g0_adopt", "g0_drain"}
    for name in asks:
        rules = [rule for rule in chains[name] if "comment" not in rule]
        first = next(index for index, rule in enumerate(rules) if "@lease" in rule)
        assert all("accept" not in rule and "take" not in rule for rule in rules[:first])
    to_take = {name for name, rules in chains.items() if any(rule.endswith("goto take") for rule in rules)}
    # own_new, g0_adopted and g0_drained are reached only with a mark that an asking chain has set.
    assert to_take == {"uncovered_accept", "icmp_error", "g0_own", "own_new", "g0_adopted", "g0_drained"}
    accepting = {
        name
        for name, rules in chains.items()
        if any(re.search(r"\baccept$", rule) and "iifname !=" not in rule for rule in rules)
    }
    # renew: not for the loopback; neighbour discovery is in a map.
    assert accepting == {"take", "g0_own", "g0_adopt", "g0_drain", "renew"}


def test_every_interface_has_its_own_way_in() -> None:
    """A packet for a VIP that comes another way is not filtered, whether a service is meant or not."""
    vips = (Vip(VIP, "eth0"), Vip(ip_address("192.0.2.101"), "eth1"))
    rules = [Rule(f"web{vip.address}", "web", vip.address, Protocol.TCP, (80,)) for vip in vips]
    rules += [Rule(f"ssh{vip.address}", "shut", vip.address, Protocol.TCP, (22,)) for vip in vips]
    policy = FilterPolicy("shop", vips, (Group("web", 1), Group("shut", 2, Mode.BLOCKED)), tuple(rules))
    script = open_script(policy, {}, MARKS)
    for number, vip in enumerate(vips):
        for port in (80, 22):
            found = re.search(rf"{vip.address} \. tcp \. {port} : goto (\w+)", script)
            assert found
            first = dict(CHAIN.findall(script))[found[1]].strip().split("\n")[0].strip()
            assert first == f'iifname != "eth{number}" accept'


def test_without_the_socket_match_there_is_no_rule_that_uses_it() -> None:
    assert "socket wildcard" in open_script(POLICY, {}, MARKS)
    assert "socket" not in open_script(POLICY, {}, MARKS, socket_match=False)


def test_only_the_difference_is_applied() -> None:
    later = {"web": BucketStates(own=0b1001, drain=0b10000)}
    assert changes(POLICY, STATES, later) == [MapChange("g0", [1, 2, 3], {3: "g0_own"})]
    assert changes(POLICY, STATES, STATES) == []
    assert changes(POLICY, STATES, {}) == [MapChange("g0", [0, 1, 2, 3, 4], {})]
    assert changes(POLICY, {}, {"admin": BucketStates(own=ALL)}) == [], "a blocked group has no map"


@st.composite
def bucket_states(draw: st.DrawFn) -> BucketStates:
    own, adopt, drain = (draw(st.integers(0, ALL)) for _ in range(3))
    return BucketStates(own, adopt & ~own, drain & ~own & ~adopt)


@given(bucket_states(), bucket_states())
def test_a_change_leads_from_one_state_to_the_other(before: BucketStates, after: BucketStates) -> None:
    kernel = elements(0, before)
    for change in changes(POLICY, {"web": before}, {"web": after}):
        for bucket in change.gone:
            del kernel[bucket]
        for bucket, chain in change.come.items():
            assert bucket not in kernel, "an element cannot be added twice"
            kernel[bucket] = chain
    assert kernel == elements(0, after)


@pytest.mark.parametrize(
    ("farm", "name"),
    [
        ("shop", "nlbfarm_shop"),
        ("shop-1.eu", "nlbfarm_shop-1.eu"),
        ("a b", "nlbfarm_a/20b"),
        ("é", "nlbfarm_/c3/a9"),
    ],
)
def test_the_name_of_the_table(farm: str, name: str) -> None:
    assert table_name(farm) == name


@given(st.text(), st.text())
def test_two_farms_have_two_tables(one: str, other: str) -> None:
    assert (table_name(one) == table_name(other)) == (one == other)
    assert re.fullmatch(r"nlbfarm_[A-Za-z0-9._/-]*", table_name(one))


@given(st.floats(-10, 1))
def test_a_lease_is_rounded_down(seconds: float) -> None:
    step = lease_step(seconds)
    if step >= 0:
        assert LEASES_MS[step] <= seconds * 1000 + 1e-6
    assert all(length > seconds * 1000 for length in LEASES_MS[step + 1 :] if length > seconds * 1000 + 1e-6)
    assert lease_step(0.3) == LEASES_MS.index(300)


def test_the_marks_of_a_table_differ() -> None:
    marks = [MARKS.lease(step) for step in range(-1, len(LEASES_MS))]
    marks += [
        MARKS.new_flow,
        *(mark for group in range(64) for mark in (MARKS.adopt(group), MARKS.drain(group))),
    ]
    assert len(set(marks)) == len(marks)
    assert {mark >> 12 for mark in marks} == {MARKS.nonce}
    for nonce in (0, 1 << 20):
        with pytest.raises(ValueError, match="nonce"):
            Marks(nonce)


def test_every_counter_is_an_object_of_the_table() -> None:
    script = open_script(POLICY, {}, MARKS)
    names = {name for name, _, _ in counter_names(POLICY)}
    assert {f"counter {name} {{ }}" in script for name in names} == {True}
    used = set(re.findall(r"counter name (\w+)", script))
    assert used == names
