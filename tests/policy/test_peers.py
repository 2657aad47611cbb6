"""Who holds whose copies: another domain, evenly, and where they were when somebody else's node was replaced."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from behemoth.policy.peers import asked, holders, wards

_gangs = st.integers(1, 5).flatmap(
    lambda stride: st.tuples(
        st.just(stride), st.integers(1, 3), st.lists(st.integers(0, 6), min_size=1, max_size=24).map(tuple)
    )
)


def test_neighbours_of_one_domain_hold_the_copies_of_the_next() -> None:
    domains = (0, 0, 1, 1, 2, 2)
    assert [holders(slot, domains, stride=2, copies=1) for slot in range(6)] == [(2,), (3,), (4,), (5,), (0,), (1,)]
    assert wards(4, domains, stride=2, copies=1) == (2,)
    assert holders(0, domains, stride=2, copies=2) == (2, 4)


def test_where_a_neighbour_shares_the_domain_the_next_one_further_on_holds_the_copy() -> None:
    assert holders(0, (0, 0, 1, 2), stride=1, copies=1) == (2,)
    assert holders(3, (0, 1, 2, 0), stride=1, copies=1) == (1,)


@pytest.mark.parametrize("domains", [(0,), (0, 0, 0)])
def test_nobody_holds_copies_where_all_may_fail_together(domains: tuple[int, ...]) -> None:
    assert holders(0, domains, stride=1, copies=1) == ()
    assert wards(0, domains, stride=1, copies=1) == ()


@settings(deadline=None)
@given(gang=_gangs)
def test_a_slot_and_its_holders_are_in_domains_of_their_own(gang: tuple[int, int, tuple[int, ...]]) -> None:
    stride, copies, domains = gang
    for slot in range(len(domains)):
        found = holders(slot, domains, stride=stride, copies=copies)
        assert len({domains[slot], *(domains[other] for other in found)}) == 1 + len(found)
        assert len(found) == min(copies, len(set(domains)) - 1)


@settings(deadline=None)
@given(gang=_gangs)
def test_wards_are_those_whose_holder_one_is(gang: tuple[int, int, tuple[int, ...]]) -> None:
    stride, copies, domains = gang
    for slot in range(len(domains)):
        for ward in range(len(domains)):
            is_held = slot in holders(ward, domains, stride=stride, copies=copies)
            assert is_held is (ward in wards(slot, domains, stride=stride, copies=copies))


@settings(deadline=None)
@given(num_domains=st.integers(2, 8), stride=st.integers(1, 5), copies=st.integers(1, 3))
def test_every_slot_holds_as_many_as_every_other_when_neighbours_share_a_domain(
    num_domains: int, stride: int, copies: int
) -> None:
    assume(copies < num_domains)
    domains = [slot // stride for slot in range(num_domains * stride)]
    held = Counter(
        holder for slot in range(len(domains)) for holder in holders(slot, domains, stride=stride, copies=copies)
    )
    assert set(held.values()) == {copies}


@settings(deadline=None)
@given(
    num_domains=st.integers(3, 8),
    stride=st.integers(1, 4),
    copies=st.integers(1, 2),
    replaced=st.integers(0, 31),
    domain=st.integers(0, 8),
)
def test_a_slot_whose_node_was_replaced_finds_its_copies_where_they_were(
    num_domains: int, stride: int, copies: int, replaced: int, domain: int
) -> None:
    before = [slot // stride for slot in range(num_domains * stride)]
    slot = replaced % len(before)
    after = [domain if other == slot else known for other, known in enumerate(before)]
    assert set(holders(slot, before, stride=stride, copies=copies)) <= set(
        asked(slot, after, stride=stride, copies=copies)
    )


@settings(deadline=None)
@given(num_domains=st.integers(3, 8), stride=st.integers(1, 4), replaced=st.integers(0, 31))
def test_a_spare_of_a_domain_of_its_own_moves_nobody_elses_copies(num_domains: int, stride: int, replaced: int) -> None:
    before = [slot // stride for slot in range(num_domains * stride)]
    slot = replaced % len(before)
    after = [num_domains if other == slot else known for other, known in enumerate(before)]
    for other in range(len(before)):
        assert holders(other, after, stride=stride, copies=1) == holders(other, before, stride=stride, copies=1)
