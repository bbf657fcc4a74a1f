"""Contrasts of a candidate with the current version: exact for few pairs, and guarded by category."""

from __future__ import annotations

import numpy as np
import pytest

from coe.trials.contrasts import SIGNIFICANCE, Contrast, significance_level
from coe.trials.judgement import Evidence, falling_categories, held_out_evidence


def contrast(value: float, *, above: float, below: float = 0.9) -> Contrast:
    return Contrast(value, 0.01, above, below, 500)


def test_a_guarded_category_that_falls_significantly_is_named() -> None:
    overall = contrast(0.05, above=1e-4)
    falling = Evidence("held-out set", overall, {"law": contrast(-0.2, above=1.0, below=1e-4)})
    assert "law falls by 0.200" in falling_categories([falling])
    assert not falling_categories([Evidence("held-out set", overall, {"law": contrast(-0.02, above=0.8, below=0.2)})])


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
