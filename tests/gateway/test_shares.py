"""FairShares: a caller may hold at most as many units as are still free."""

import random
from collections import Counter

import pytest

from gateway.request.body import FairShares


def filled(shares: FairShares, caller: str | None, *, capacity: int) -> int:
    """Acquire units until the caller gets no more, and return their number."""
    while shares.acquire(caller, capacity=capacity):
        pass
    return shares.of(caller)


def test_it_takes_as_many_callers_as_the_places_can_be_halved_to_leave_another_none() -> None:
    shares = FairShares()
    assert [filled(shares, caller, capacity=128) for caller in "abcdefghi"] == [64, 32, 16, 8, 4, 2, 1, 1, 0]
    shares = FairShares()
    assert [filled(shares, caller, capacity=4096) for caller in "abcdefghijklmn"][-3:] == [1, 1, 0]


def test_what_is_taken_and_given_back_is_counted_exactly() -> None:
    rng, shares, counted = random.Random(0), FairShares(), Counter[str]()
    for _ in range(5000):
        caller = rng.choice("aaab")
        if rng.random() < 0.55:
            counted[caller] += (taken := shares.acquire(caller, capacity=9))
            assert taken == (counted[caller] - taken < 9 - (counted.total() - taken))
        elif counted[caller]:
            shares.release(caller)
            counted[caller] -= 1
        assert (shares.of("a"), shares.of("b"), shares.held) == (counted["a"], counted["b"], counted.total())


@pytest.mark.parametrize(("reserve", "own"), [(0, 128), (1, 127), (8, 120), (64, 64), (200, 64)])
def test_with_a_reserve_a_caller_alone_gets_the_units_before_it(reserve: int, own: int) -> None:
    shares = FairShares()
    while shares.acquire("a", capacity=128, reserve=reserve):
        pass
    assert shares.of("a") == own
    assert shares.allows("b", capacity=128, reserve=reserve) == (own < 128)
    assert not shares.allows("b", capacity=127 - reserve, reserve=reserve)
