"""Comparing views, and the nodes that all hear one another."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.views import disjoint, greater, largest_clique, names
from nlbfarm.core.wire import Epoch, Member, View


def view(counter: int, leader: int, *members: int) -> View:
    return View(Epoch(counter, leader), tuple(Member(node, 1) for node in members))


def test_more_members_win_then_the_lower_leader_then_the_later_epoch() -> None:
    assert greater(view(1, 5, 5, 6), view(9, 1, 1))
    assert greater(view(1, 1, 1), view(9, 2, 2))
    assert greater(view(2, 1, 1), view(1, 1, 1))
    assert not greater(view(1, 1, 1), view(1, 1, 1))


def test_a_life_is_part_of_a_members_identity() -> None:
    old = View(Epoch(1, 1), (Member(1, 1),))
    new = View(Epoch(2, 1), (Member(1, 2),))
    assert disjoint(old, new)
    assert names(new, 1, 2)
    assert not names(new, 1, 1)


@given(st.integers(0, 7), st.sets(st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_the_clique_is_the_largest_and_of_equals_the_lowest(size: int, pairs: set[tuple[int, int]]) -> None:
    nodes = tuple(range(1, size + 1))
    broken: dict[int, set[int]] = {}
    for one, other in pairs:
        if one != other:
            broken.setdefault(one, set()).add(other)

    def whole(chosen: tuple[int, ...]) -> bool:
        return not any(other in broken.get(one, ()) for one, other in itertools.permutations(chosen, 2))

    every = [c for k in range(size + 1) for c in itertools.combinations(nodes, k) if whole(c)]
    most = max(len(chosen) for chosen in every)
    found = largest_clique(nodes, broken)
    assert whole(found)
    assert len(found) == most


def test_one_broken_link_costs_one_node_the_higher_one() -> None:
    assert largest_clique([1, 2, 3, 4], {1: {3}}) == (1, 2, 4)


def test_a_deaf_node_is_left_out_whatever_its_id() -> None:
    assert largest_clique([1, 2, 3, 4], {1: {2, 3, 4}}) == (2, 3, 4)


def test_thirty_two_nodes_with_many_broken_links_are_no_trouble() -> None:
    broken = {node: {other for other in range(1, 33) if (node * other) % 3 == 1} for node in range(1, 33)}
    assert len(largest_clique(range(1, 33), broken)) >= 10
