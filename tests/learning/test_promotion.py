"""Promotion: accepts candidates with a significant gain and no significant loss, and rarely accepts noise."""

from __future__ import annotations

import numpy as np
import pytest

from coe.learning.promotion import (
    SIGNIFICANCE,
    Contrast,
    Evidence,
    held_out_evidence,
    judge,
    significance_level,
)


def contrast(value: float, *, above: float, below: float = 0.9) -> Contrast:
    return Contrast(value, 0.01, above, below, 500)


def evidence(value: float, *, above: float, below: float = 0.9, **guarded: Contrast) -> Evidence:
    return Evidence("held-out set", contrast(value, above=above, below=below), guarded)


def test_a_falling_guarded_category_rejects_a_better_candidate() -> None:
    falling = evidence(0.05, above=1e-4, law=contrast(-0.2, above=1.0, below=1e-4))
    found = judge([falling], round_=1)
    assert (found.promote, found.reason) == (False, "guarded category falls")
    assert "law falls by 0.200" in found.sentence
    assert judge([evidence(0.05, above=1e-4, law=contrast(-0.02, above=0.8, below=0.2))], round_=1).promote


def test_evidence_that_suffices_in_the_first_round_does_not_in_a_later_one() -> None:
    likely = evidence(0.03, above=0.01)
    assert judge([likely], round_=1).promote
    assert judge([likely], round_=5).reason == "not better"


def test_the_levels_of_all_rounds_add_up_to_the_significance() -> None:
    assert sum(significance_level(number) for number in range(1, 100_000)) == pytest.approx(SIGNIFICANCE, rel=1e-4)


def test_a_paired_test_is_exact_where_few_pairs_differ() -> None:
    gain = np.zeros(400)
    gain[:3] = 1.0
    found = held_out_evidence(np.zeros(400), gain, ["x"] * 400).overall
    assert found.above == pytest.approx(1 / 8, abs=0.01)  # three coins, all heads
    assert found.below == pytest.approx(1.0)


def test_only_guarded_categories_with_enough_requests_are_tested() -> None:
    names = ["law"] * 30 + ["code"] * 5
    found = held_out_evidence(np.ones(35), np.zeros(35), names, guarded=("law", "code", "math"))
    assert list(found.guarded) == ["law"]
    assert found.guarded["law"].below < 0.001


def test_a_series_of_candidates_no_better_than_the_current_one_is_rarely_promoted() -> None:
    series, rounds, promoted = 300, 12, 0
    random = np.random.default_rng(0)
    for _ in range(series):
        luck = enumerate(random.random(rounds), start=1)
        promoted += any(judge([evidence(0.0, above=p, below=1 - p)], round_=number).promote for number, p in luck)
    assert promoted / series < 0.08  # 5 % and twice the simulation's error
