"""Datagrams that were refused: what is said of them, and how often."""

from __future__ import annotations

from ipaddress import ip_address

from nlbfarm.errors import PeerError
from nlbfarm.rejections import LOG_AGAIN_S, MOST_SOURCES, RECENT_S, Rejections

FORGED = PeerError("forged", "the signature is wrong")


def rejections() -> Rejections:
    return Rejections({2: [ip_address("192.0.2.12"), ip_address("2001:db8::12")]}, {1: "web1", 2: "web2"})


def test_a_node_with_another_key_is_named_with_what_to_do() -> None:
    said = rejections().add(FORGED, "192.0.2.12:4804", 0.0)
    assert said is not None
    assert said.startswith("web2 (192.0.2.12) sends datagrams signed with another key: compare the key files")
    assert "web2 (2001:db8::12)" in str(rejections().add(FORGED, "[2001:db8::12]:4804", 0.0))
    assert str(rejections().add(FORGED, "203.0.113.1:99", 0.0)).startswith("203.0.113.1 sends")


def test_a_cause_that_lasts_is_logged_once_a_minute_and_each_cause_by_itself() -> None:
    refused = rejections()
    assert refused.add(FORGED, "192.0.2.12:4804", 0.0)
    assert refused.add(FORGED, "192.0.2.12:4804", LOG_AGAIN_S - 1) is None
    assert refused.add(PeerError("farm", ""), "192.0.2.12:4804", LOG_AGAIN_S - 1)
    assert refused.add(FORGED, "192.0.2.12:4804", LOG_AGAIN_S)
    assert refused.counts == {"forged": 3, "farm": 1}


def test_a_warning_goes_when_its_cause_has_gone() -> None:
    refused = rejections()
    refused.add(FORGED, "192.0.2.12:4804", 5.0)
    assert len(refused.warnings(5.0 + RECENT_S)) == 1
    assert refused.warnings(5.1 + RECENT_S) == []


def test_forged_sources_do_not_fill_the_memory() -> None:
    refused = rejections()
    for number in range(1000):
        refused.add(FORGED, f"203.0.113.{number}:1", float(number))
    assert len(refused.warnings(1000.0)) <= MOST_SOURCES
    assert refused.counts == {"forged": 1000}
