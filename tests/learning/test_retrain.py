"""A learning round promotes a better plan, keeps an equal one, and changes nothing if feedback is poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson
import pytest

from coe.learning.experience import Experience
from coe.learning.moves import HeldOutProbes, shares
from coe.learning.off_policy import greedy_policy
from coe.learning.plan_candidate import CurrentPlan, judge_plan
from coe.learning.plan_round import plan_report
from coe.planning.assignment import Assignment
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable
from coe.planning.solver import solve
from tests.learning.samples import CATEGORIES, EXPERTS, TRUTH, experience, rated_experience

TENANTS = tuple("abcdefg")
BEST = TRUTH.argmax(axis=1).tolist()


def plan(table: ScoreTable, quality: np.ndarray) -> Assignment:
    return solve(Problem.of(table, quality=quality, weights=np.ones(3)))


def current(quality: np.ndarray) -> CurrentPlan:
    table = ScoreTable(CATEGORIES, EXPERTS, quality, quality * 0, np.ones((3, 3)))
    return CurrentPlan(solve(Problem.of(table, quality=quality)), rate=0.3, loss=1.0)


def probes(count: int, *, seed: int = 99) -> HeldOutProbes:
    random = np.random.default_rng(seed)
    seen = experience(count)
    category = seen.posterior.argmax(axis=1)
    scores = (random.random((count, 3)) < TRUTH[category]).astype(float)
    return HeldOutProbes(seen, scores, tuple(seen.categories[i] for i in category))


def choices(assignment: Assignment) -> list[int]:
    return greedy_policy(experience(3), assignment).argmax(axis=1).tolist()


def test_a_round_of_traffic_promotes_the_right_plan_without_prior_scores() -> None:
    found = judge_plan(rated_experience(900, seed=0), current(np.zeros((3, 3))), now=900.0, solve_plan=plan)
    assert choices(found.candidate) == BEST
    assert found.judgement.promote
    assert [one.source for one in found.judgement.evidence] == ["logged traffic"]


def test_probes_alone_can_show_a_plan_better_where_no_request_is_rated() -> None:
    silent = replace(rated_experience(600, seed=1, quality=TRUTH[::-1]), kind=np.full(600, 4, dtype=np.int8))
    liked = replace(silent, kind=np.where(np.arange(600) < 80, 0, silent.kind).astype(np.int8))
    found = judge_plan(liked, current(TRUTH[::-1]), now=600.0, solve_plan=plan, probes=probes(300))
    assert [one.source for one in found.judgement.evidence] == ["held-out set"]
    assert found.judgement.promote


def test_a_round_judges_requests_with_the_declared_cost_weight() -> None:
    log = rated_experience(900, seed=0)
    dear = replace(current(np.zeros((3, 3))), charge=np.array([2.0, 0.0, 2.0]))
    found = judge_plan(log, dear, now=900.0, solve_plan=plan, probes=probes(300))
    assert choices(dear.charged(found.candidate)) == [1, 1, 1]
    assert all(one.overall.value == 0.0 for one in found.judgement.evidence if one.source == "held-out set")
    assert found.estimates["current"].value == pytest.approx(found.estimates["candidate"].value)


def poisoned(log: Experience) -> Experience:
    """A tenant with a third of the requests says the opposite."""
    owner = np.where(np.arange(len(log)) % 3 == 0, 0, log.tenant)
    return replace(log, tenant=owner, reward=np.where(owner == 0, 1.0 - log.reward, log.reward))


@pytest.mark.parametrize("seed", range(2))
def test_inverted_feedback_of_one_tenant_neither_trains_nor_judges(seed: int) -> None:
    log = poisoned(rated_experience(1800, seed=seed, tenants=TENANTS))
    found = judge_plan(log, current(TRUTH), now=900.0, solve_plan=plan)
    assert choices(found.candidate) == BEST
    assert found.judgement.reason != "better"
    assert [one.tenant for one in found.refit.agreements if one.trust < 1.0] == ["a"]


def test_a_move_that_probes_show_to_lose_is_rejected_and_the_others_are_accepted() -> None:
    harmed = np.array([[0.8, 0.5, 0.2], [0.4, 0.6, 0.4], [0.9, 0.5, 0.1]])  # ratings that like the coder for law
    log = rated_experience(1500, seed=3, truth=harmed)
    wrong = TRUTH.copy()
    wrong[0] = [0.2, 0.5, 0.8]
    found = judge_plan(log, current(wrong), now=900.0, solve_plan=plan, probes=probes(600), guarded=CATEGORIES)
    assert [(move.category, move.target) for move in found.moves if move.accepted] == [("code", "coder")]
    assert choices(found.candidate) == BEST
    assert found.judgement.promote


def test_only_the_categories_with_evidence_move_and_the_rows_of_the_others_stay() -> None:
    changed = TRUTH.copy()
    changed[0] = [0.2, 0.5, 0.2]  # the coder got worse at code
    measured = ScoreTable(CATEGORIES, EXPERTS, TRUTH, TRUTH * (1 - TRUTH), np.full((3, 3), 40.0))
    before = current(TRUTH)
    log = rated_experience(2000, seed=4, quality=TRUTH, truth=changed)
    found = judge_plan(log, before, now=2000.0, solve_plan=plan, base=measured)
    assert found.judgement.promote
    assert [(move.category, move.target) for move in found.moves if move.accepted] == [("code", "generalist")]
    np.testing.assert_array_equal(found.candidate.quality[1:], before.assignment.quality[1:])
    assert choices(found.candidate) == [1, 1, 2]


def test_a_cell_that_the_log_cannot_show_never_takes_a_category() -> None:
    """The lawyer is never explored for code; what others say of it elsewhere must not bring it there."""
    changed = TRUTH.copy()
    changed[0] = [0.2, 0.3, 0.9]
    before = replace(current(TRUTH), loss=0.35)  # the lawyer is .6 behind at code
    log = rated_experience(3000, seed=5, quality=TRUTH, truth=changed, loss=0.35)
    found = judge_plan(log, before, now=3000.0, solve_plan=plan)
    assert "lawyer" not in {move.target for move in found.moves if move.category == "code" and move.accepted}
    assert choices(found.candidate)[0] != 2


def test_an_expert_whose_ratings_drop_keeps_its_category_and_a_better_measured_one_is_explored() -> None:
    changed = TRUTH.copy()
    changed[0] = [0.1, 0.5, 0.2]
    measured = ScoreTable(CATEGORIES, EXPERTS, TRUTH, TRUTH * (1 - TRUTH), np.full((3, 3), 40.0))
    before = replace(current(TRUTH), loss=0.1)  # the generalist is .3 behind at code: never explored
    log = rated_experience(1200, seed=6, quality=TRUTH, truth=changed, loss=0.1)
    found = judge_plan(log, before, now=1200.0, solve_plan=plan, base=measured)
    assert found.judgement.reason == "explored"
    assert "generalist in code" in found.judgement.sentence
    np.testing.assert_array_equal(found.candidate.quality, before.assignment.quality)
    assert found.candidate.exploration is not None
    assert found.candidate.exploration[0, 1] > 0 == found.candidate.exploration[0, 0]
    again = replace(before, assignment=found.candidate)
    assert judge_plan(log, again, now=1200.0, solve_plan=plan, base=measured).judgement.reason != "explored"


def test_a_move_with_thin_support_is_reported_and_not_promoted() -> None:
    log = rated_experience(400, seed=7, quality=TRUTH[::-1], rate=0.02)
    found = judge_plan(log, current(TRUTH[::-1]), now=400.0, solve_plan=plan)
    assert found.judgement.reason != "better"
    assert {move.verdict for move in found.moves} <= {"thin support", "not better"}
    before = replace(current(np.array([[0.5, 0.4, 0.4]] * 3)), loss=0.0)
    few = rated_experience(300, seed=8, quality=np.array([[0.5, 0.4, 0.4]] * 3), loss=0.0)
    assert judge_plan(few, before, now=300.0, solve_plan=plan).judgement.reason != "better"


def test_a_move_that_the_solved_prices_would_turn_to_another_expert_is_rejected() -> None:
    quality, changed = np.array([[0.8, 0.5, 0.9], [0.4, 0.7, 0.3], [0.1, 0.3, 1.2]]), TRUTH.copy()
    changed[0] = [0.2, 0.5, 0.2]
    assignment = replace(current(quality).assignment, price=np.tile([0.0, 0.0, 0.6], (3, 1)))
    before = replace(current(TRUTH), assignment=assignment, loss=0.35)
    log = rated_experience(2000, seed=4, quality=quality - assignment.price, truth=changed, loss=0.35)
    found = judge_plan(log, before, now=2000.0, solve_plan=plan)  # which has no prices
    assert {move.verdict for move in found.moves if move.category == "code"} == {"breaks the budget"}
    assert found.judgement.reason != "better"


def joined(*parts: Experience) -> Experience:
    names = ("posterior", "chosen", "propensity", "propensities", "reward", "kind", "tenant")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return experience(sum(map(len, parts)), **columns)


def moved(log: Experience, ends: Sequence[int]) -> tuple[str, ...]:
    """The experts of the final plan, of rounds that read the log up to each end."""
    plan_in_use = current(TRUTH[::-1])
    for end in ends:
        part = log.part(np.arange(len(log)) < end)
        found = judge_plan(part, plan_in_use, now=float(end), solve_plan=plan)
        since = {move.category: move.decided for move in found.moves if move.accepted}
        plan_in_use = replace(plan_in_use, assignment=found.candidate, since={**plan_in_use.since, **since})
    best = shares(plan_in_use.assignment).argmax(axis=1)
    return tuple(EXPERTS[expert] for expert in best)


@pytest.mark.parametrize("late", [TRUTH, TRUTH[[1, 2, 0]]])
def test_the_same_log_gives_the_same_plan_whether_it_is_read_in_one_round_or_in_twenty(late: np.ndarray) -> None:
    """Also where experts change while the log is written, so that a category moves twice."""
    for seed in range(3):
        parts = [rated_experience(1000, seed=seed, quality=TRUTH[::-1], truth=truth) for truth in (TRUTH, late)]
        log = joined(*parts)
        assert moved(log, [2000]) == moved(log, range(100, 2001, 100))
        if late is TRUTH:
            assert moved(log, [2000]) == tuple(EXPERTS[expert] for expert in BEST)


def test_the_report_has_changes_evidence_and_distrusted_tenants() -> None:
    log = poisoned(rated_experience(1800, seed=0, tenants=TENANTS))
    before = current(TRUTH[::-1])
    found = judge_plan(log, before, now=1800.0, solve_plan=plan)
    made = orjson.loads(orjson.dumps(plan_report(found, before, experience=log, left_out={"failed": 3})))
    assert made["promoted"] is True
    assert made["feedback"] == {"score": 1800}
    assert {row["category"]: (row["from"], row["to"]) for row in made["changes"]} == {
        "code": ("lawyer", "coder"),
        "law": ("coder", "lawyer"),
    }
    assert set(made["estimates"]) == {"current", "candidate"}
    assert made["sentence"].startswith("promoted: code lawyer -> coder (+0.")
    assert made["moves"][0]["sentence"].startswith("code: lawyer -> coder: better; +0.")
    assert {move["category"] for move in made["moves"]} == {"code", "law"}
    assert made["left_out"] == {"failed": 3}
    assert made["tenants"][0]["sentence"].startswith("tenant 'a': agreement -")
