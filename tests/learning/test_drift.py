"""Drift and alarms about experts: detected if present, with few false alarms."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from coe.learning.off_policy import greedy_policy
from coe.planning.assignment import Assignment
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve
from coe.reports.alarms import share_alarms
from coe.reports.degradation import DAY_SECONDS, Baseline, Degradation, degradations
from coe.trials.drift import DriftFinding, TrafficSample, detect_drift
from tests.learning.samples import CATEGORIES, EXPERTS, TRUTH, Experience, rated_experience

MIX = (0.5, 0.3, 0.2)


def traffic(seed: int, *, count: int = 800, mix: tuple[float, ...] = MIX, confidence: float = 8.0) -> TrafficSample:
    random = np.random.default_rng(seed)
    return TrafficSample(random.choice(3, count, p=mix), random.beta(confidence, 2.0, count))


def detected(recent: TrafficSample, number: int = 1) -> dict[str, DriftFinding]:
    return {one.aspect: one for one in detect_drift(traffic(0), recent, categories=CATEGORIES, test=number)}


def test_each_shift_is_found_in_its_aspect_alone() -> None:
    shifts = {"category mix": traffic(1, mix=(0.3, 0.3, 0.4)), "confidence": traffic(1, confidence=4.0)}
    for aspect, recent in shifts.items():
        assert [name for name, found in detected(recent).items() if found.alarm] == [aspect]


def test_repeated_tests_of_the_same_traffic_rarely_raise_an_alarm() -> None:
    false = 0
    for series in range(12):
        reference = traffic(1000 + series, count=400)
        repeated = (
            detect_drift(reference, traffic(5000 + 10 * series + n, count=400), categories=CATEGORIES, test=n + 1)
            for n in range(4)
        )
        false += any(found.alarm for findings in repeated for found in findings)
    assert false <= 2


def test_a_significant_but_tiny_shift_is_no_alarm() -> None:
    many = TrafficSample(np.repeat([0, 1, 2], (500_000, 300_000, 200_000)), np.linspace(0, 1, 1000))
    shifted = replace(many, category=np.repeat([0, 1, 2], (490_000, 310_000, 200_000)))
    found = detect_drift(many, shifted, categories=CATEGORIES, test=1)[0]
    assert found.chance < 1e-12
    assert not found.alarm


# ------------------------------------------------------------------------------------------------------------ experts


def plan(quality: np.ndarray) -> Assignment:
    return solve(Problem.of(tabulate_softly(CATEGORIES, EXPERTS, np.eye(3), np.zeros((3, 3))), quality=quality))


def served(log: Experience, expert: np.ndarray) -> Experience:
    return replace(log, chosen=expert.astype(np.int16))


def test_traffic_as_planned_is_no_alarm_even_where_one_expert_gets_all_of_it() -> None:
    log = rated_experience(600, seed=0)
    for quality in (TRUTH, np.array([[1.0, 0.0, 0.0]] * 3)):
        as_planned = served(log, greedy_policy(log, plan(quality)).argmax(axis=1))
        assert share_alarms(as_planned, plan(quality)) == ()


def test_an_expert_that_gets_all_traffic_and_starved_ones_are_named() -> None:
    log = served(rated_experience(600, seed=0), np.zeros(600))
    found = {(one.kind, one.expert) for one in share_alarms(log, plan(TRUTH))}
    assert found == {("collapse", "coder"), ("starvation", "generalist"), ("starvation", "lawyer")}


def days(log: Experience, first: int, count: int) -> Experience:
    return replace(log, time=(first + np.arange(len(log)) / len(log) * count) * DAY_SECONDS)


def found_in(before: Experience, recent: Experience) -> tuple[Degradation, ...]:
    parts = days(before, 0, 3), days(recent, 3, 1)
    arrays = [name for name, value in vars_of(before).items() if isinstance(value, np.ndarray)]
    log = replace(before, **{name: np.concatenate([getattr(one, name) for one in parts]) for name in arrays})
    return degradations(log, Baseline(TRUTH, np.full(TRUTH.shape, 30.0), {}))


def vars_of(log: Experience) -> dict[str, object]:
    return {one.name: getattr(log, one.name) for one in fields(log)}


def test_an_expert_that_got_worse_is_found_with_its_category_and_the_others_are_not() -> None:
    worse = TRUTH.copy()
    worse[2, 2] = 0.3
    before = rated_experience(900, seed=1)
    (found,) = found_in(before, rated_experience(900, seed=2, truth=worse))
    assert found.expert == "lawyer"
    assert found.since >= 2 * DAY_SECONDS
    (drop,) = found.drops
    assert (drop.category, drop.expected, drop.found) == (
        "law",
        pytest.approx(0.8, abs=0.1),
        pytest.approx(0.3, abs=0.2),
    )
    assert found_in(before, rated_experience(900, seed=2)) == ()


def test_harder_categories_do_not_make_an_expert_look_worse() -> None:
    easy, hard = rated_experience(900, seed=3), rated_experience(900, seed=4)
    before = easy.part(easy.posterior.argmax(axis=1) != 2)
    assert found_in(before, hard.part(hard.posterior.argmax(axis=1) != 0)) == ()


def test_ratings_from_before_an_expert_was_measured_do_not_count() -> None:
    log = days(rated_experience(600, seed=5, truth=TRUTH * 0.2), 0, 2)
    count = np.full(TRUTH.shape, 30.0)
    assert degradations(log, Baseline(TRUTH, count, {}))
    assert degradations(log, Baseline(TRUTH, count, dict.fromkeys(EXPERTS, 2 * DAY_SECONDS))) == ()
