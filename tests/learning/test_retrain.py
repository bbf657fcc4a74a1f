"""A round of learning: better is promoted, the same is kept, and a poisoned round changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from coe.learning.experience import Experience
from coe.learning.policies import greedy
from coe.learning.refit import Refit
from coe.learning.retrain import Current, Probes, retrain
from coe.learning.round_plot import plot_round
from coe.learning.round_report import markdown, round_report
from coe.mapping import Assignment, Problem, solve
from coe.scoring import ScoreTable
from tests.learning.samples import CATEGORIES, EXPERTS, TRUTH, experience, told

TENANTS = tuple("abcdefg")
BEST = TRUTH.argmax(axis=1).tolist()


def plan(refit: Refit) -> Assignment:
    return solve(Problem.of(refit.table, quality=refit.quality, weights=np.ones(3)))


def current(quality: np.ndarray, *, rounds: int = 0) -> Current:
    table = ScoreTable(CATEGORIES, EXPERTS, quality, quality * 0, np.ones((3, 3)))
    return Current(solve(Problem.of(table, quality=quality)), since=0.0, rounds=rounds, rate=0.3, loss=1.0)


def probes(count: int, *, seed: int = 99) -> Probes:
    random = np.random.default_rng(seed)
    seen = experience(count)
    category = seen.posterior.argmax(axis=1)
    scores = (random.random((count, 3)) < TRUTH[category]).astype(float)
    return Probes(seen, scores, tuple(seen.categories[i] for i in category))


def choices(assignment: Assignment) -> list[int]:
    return greedy(experience(3), assignment).argmax(axis=1).tolist()


def test_from_nothing_known_a_round_of_traffic_promotes_the_right_plan() -> None:
    found = retrain(told(900, seed=0), current(np.zeros((3, 3))), now=900.0, plan=plan)
    assert choices(found.candidate) == BEST
    assert found.judgement.promote
    assert [one.source for one in found.judgement.evidence] == ["logged traffic"]


def test_a_plan_that_is_right_already_is_kept_round_after_round() -> None:
    for number in range(6):
        log = told(600, seed=number, quality=TRUTH)
        found = retrain(log, current(TRUTH, rounds=number), now=600.0, plan=plan, probes=probes(300))
        assert found.judgement.reason == "not better"
        assert found.judgement.round_ == number + 1


def test_probes_alone_can_show_a_plan_better_where_no_request_is_rated() -> None:
    silent = replace(told(600, seed=1, quality=TRUTH[::-1]), kind=np.full(600, 4, dtype=np.int8))
    taught = replace(silent, kind=np.where(np.arange(600) < 80, 0, silent.kind).astype(np.int8))
    found = retrain(taught, current(TRUTH[::-1]), now=600.0, plan=plan, probes=probes(300))
    assert [one.source for one in found.judgement.evidence] == ["held-out set"]
    assert found.judgement.promote


def test_a_round_judges_requests_as_thrift_decides_them() -> None:
    log = told(900, seed=0)
    dear = replace(current(np.zeros((3, 3))), charge=np.array([2.0, 0.0, 2.0]))
    found = retrain(log, dear, now=900.0, plan=plan, probes=probes(300))
    assert choices(dear.charged(found.candidate)) == [1, 1, 1]
    assert all(one.overall.value == 0.0 for one in found.judgement.evidence if one.source == "held-out set")
    assert found.estimates["current"]["dr"].value == pytest.approx(found.estimates["candidate"]["dr"].value)


def test_only_requests_that_the_current_plan_served_speak_of_it() -> None:
    log = told(900, seed=2)
    late = replace(current(np.zeros((3, 3))), since=850.0)
    assert retrain(log, late, now=900.0, plan=plan).judgement.reason == "nothing to judge by"


def poisoned(log: Experience) -> Experience:
    """A tenant with a third of the requests says the opposite."""
    owner = np.where(np.arange(len(log)) % 3 == 0, 0, log.tenant)
    return replace(log, tenant=owner, reward=np.where(owner == 0, 1.0 - log.reward, log.reward))


@pytest.mark.parametrize("seed", range(4))
def test_feedback_that_one_tenant_turns_round_neither_teaches_nor_judges(seed: int) -> None:
    log = poisoned(told(1800, seed=seed, tenants=TENANTS))
    found = retrain(log, current(TRUTH), now=900.0, plan=plan)
    assert choices(found.candidate) == BEST
    assert not found.judgement.promote
    assert [one.tenant for one in found.refit.agreements if one.trust < 1.0] == ["a"]


def test_a_guarded_category_that_the_candidate_would_harm_keeps_the_current_plan() -> None:
    harmed = np.array([[0.8, 0.5, 0.2], [0.4, 0.6, 0.4], [0.9, 0.5, 0.1]])  # ratings that like the coder for law
    log = told(900, seed=3, truth=harmed)
    wrong = TRUTH.copy()
    wrong[0] = [0.2, 0.5, 0.8]
    found = retrain(log, current(wrong), now=900.0, plan=plan, probes=probes(600), guarded=("law",))
    assert found.judgement.reason == "guarded category falls"
    assert "law falls by" in found.judgement.sentence


def test_the_report_says_what_changed_what_was_judged_and_whom_not_to_trust() -> None:
    log = poisoned(told(1800, seed=0, tenants=TENANTS))
    before = current(TRUTH[::-1])
    found = retrain(log, before, now=1800.0, plan=plan)
    made = orjson.loads(orjson.dumps(round_report(found, before, experience=log, left_out={"failed": 3})))
    assert made["promoted"] is True
    assert made["feedback"] == {"score": 1800}
    assert {row["category"]: (row["from"], row["to"]) for row in made["changes"]} == {
        "code": ("lawyer", "coder"),
        "law": ("coder", "lawyer"),
    }
    assert set(made["estimates"]) == {"current", "candidate"}
    page = markdown(made)
    assert page.startswith("# Learning, round 1: promoted\n\nPromoted: +0.")
    assert "| code | lawyer | coder |" in page
    assert "| candidate | dr | 0." in page
    assert "Left out: 3 failed." in page
    assert "- tenant 'a': agreement -" in page


def test_the_report_of_an_uneventful_round_has_no_empty_sections() -> None:
    log = told(60, seed=0, quality=TRUTH)
    same = current(TRUTH)
    found = retrain(log, same, now=60.0, plan=lambda refit: same.assignment)
    page = markdown(round_report(found, same, experience=log))
    assert page.startswith("# Learning, round 1: kept")
    assert "##" not in page


@pytest.mark.parametrize("requests", [60, 900])
def test_a_round_can_be_drawn_with_and_without_evidence(requests: int, tmp_path: Path) -> None:
    log, before = told(requests, seed=0), current(np.zeros((3, 3)))
    found = retrain(log, before, now=float(requests), plan=plan, guarded=("law",))
    plot_round(round_report(found, before, experience=log), tmp_path / "round.svg")
    drawn = (tmp_path / "round.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn
