"""Refitting quality from experience: bounds on one tenant, on many borderline requests and on old feedback."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coe.learning.experience import Experience
from coe.learning.refit import Weighting, agreements, refit, score_table, tenant_factors
from coe.planning.score_table import ScoreTable
from tests.learning.samples import CATEGORIES, EXPERTS, TRUTH, experience, rated_experience

TENANTS = tuple("abcdefg")


def flipped(log: Experience, tenant: int, *, share: float = 0.0) -> Experience:
    """The log where a tenant says the opposite; `share` of all requests become its own first."""
    owner = log.tenant.copy()
    owner[: round(share * len(log))] = tenant
    return replace(log, tenant=owner, reward=np.where(owner == tenant, 1.0 - log.reward, log.reward))


def measured(mean: np.ndarray, count: float) -> ScoreTable:
    return ScoreTable(CATEGORIES, EXPERTS, mean, mean * (1 - mean), np.full(mean.shape, count))


# ----------------------------------------------------------------------------------------------------- the table


def test_the_best_expert_of_every_category_is_found_from_chosen_ones_alone() -> None:
    found = refit(rated_experience(3000, seed=0), now=3000.0)
    assert found.quality.argmax(axis=1).tolist() == TRUTH.argmax(axis=1).tolist()


def test_old_feedback_fades_by_half_lives() -> None:
    day = 86_400.0
    old, new = rated_experience(600, seed=2), rated_experience(600, seed=3, truth=TRUTH[::-1])
    both = {
        name: np.concatenate((getattr(old, name), getattr(new, name))) for name in ("posterior", "chosen", "reward")
    }
    log = experience(
        1200,
        **both,
        kind=np.zeros(1200, dtype=np.int8),
        propensity=np.full(1200, 1 / 3, dtype=np.float32),
        time=np.repeat([0.0, 90 * day], 600),
    )
    assert refit(log, now=90 * day).quality.argmax(axis=1).tolist() == TRUTH[::-1].argmax(axis=1).tolist()
    undecided = refit(log, now=90 * day, weighting=Weighting(half_life=1e6)).quality
    assert np.ptp(undecided[0]) < 0.15


# ----------------------------------------------------------------------------------------------- measured quality


def test_measured_quality_counts_beside_feedback_at_the_level_of_feedback() -> None:
    probes = measured(TRUTH / 2, 50.0)  # a strict checker: the same order, half the level
    generous = refit(rated_experience(60, seed=6, truth=np.minimum(TRUTH + 0.2, 1.0)), now=0.0, base=probes)
    assert generous.quality.argmax(axis=1).tolist() == TRUTH.argmax(axis=1).tolist()
    assert generous.quality.mean() > 0.5


# --------------------------------------------------------------------------------------------------------- tenants


def test_a_tenant_that_contradicts_the_others_is_found_and_has_no_weight() -> None:
    log = flipped(rated_experience(1500, seed=7, tenants=TENANTS), 2, share=0.3)
    found = refit(log, now=0.0)
    trust = {one.tenant: one.trust for one in found.agreements}
    assert trust == dict.fromkeys(TENANTS, 1.0) | {"c": 0.0}
    assert "tenant 'c': agreement -" in next(one for one in found.agreements if one.tenant == "c").sentence
    assert found.quality.argmax(axis=1).tolist() == TRUTH.argmax(axis=1).tolist()


def test_honest_tenants_are_rarely_distrusted() -> None:
    doubted = sum(
        one.trust < 1.0 for seed in range(60) for one in agreements(rated_experience(700, seed=seed, tenants=TENANTS))
    )
    assert doubted <= 3  # at most one run in a hundred each, seven tenants a run


def test_measured_quality_decides_which_of_two_contradicting_tenants_is_wrong() -> None:
    log = flipped(rated_experience(1500, seed=10, tenants=("a", "b")), 0)
    found = {one.tenant: one.trust for one in agreements(log, base=measured(TRUTH, 500.0))}
    assert found == {"a": 0.0, "b": 1.0}


def test_many_requests_of_another_category_do_not_dominate_a_small_one() -> None:
    law = rated_experience(2000, seed=14)
    rows = law.posterior.argmax(axis=1) == 2
    strangers = np.flatnonzero(~rows)
    keep = np.concatenate((np.flatnonzero(rows)[:60], np.tile(strangers, 4)))
    log = law.part(keep)
    weight = np.ones(len(log))
    drowned, saved = (score_table(log, weight, weight, share=1.0, free=free).count[2].sum() for free in (1e9, 0.0))
    assert drowned > 250
    assert saved < 130


@given(
    weights=st.lists(st.lists(st.floats(0.0, 100.0), min_size=2, max_size=2), min_size=1, max_size=6),
    share=st.floats(0.1, 1.0),
)
def test_no_tenant_gets_more_than_its_share_nor_loses_without_need(weights: list[list[float]], share: float) -> None:
    array = np.array(weights)
    after = array * tenant_factors(array, share=share, free=0.0)
    for column, kept in zip(array.T, after.T, strict=True):
        bound = max(share, 1.0 / max((column > 0).sum(), 1))
        assert kept.max() <= bound * kept.sum() * (1 + 1e-6) + 1e-9
        assert (kept <= column + 1e-9).all()
        if column.max() <= bound * column.sum():
            np.testing.assert_allclose(kept, column)
