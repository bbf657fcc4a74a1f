"""Uses that are measured: tokens and latencies of a journal become costs that held-out answers are billed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from coe.measuring.probes import Probe
from coe.measuring.scoring import Scoring, run_scoring
from coe.measuring.scoring_run import Cell, Journal
from coe.planning.assignment import Assignment, expected_utility
from coe.planning.job.basis import plan_basis
from coe.planning.problem import Problem
from coe.planning.solver import solve
from coe.planning.uses import (
    ASSUMED_INPUT_TOKENS,
    ASSUMED_OUTPUT_TOKENS,
    LOGGED_MEASURES,
    MEASURES,
    MeasuredUses,
    declared_uses,
)
from coe.registry import Registry
from coe.settings import Settings
from tests.fakes import registry_of

CATEGORIES = ("code", "choice", "essay", "general")
PRICES = {"small": (0.1, 0.4), "medium": (0.5, 2.0), "large": (3.0, 15.0)}
"""US dollars per million input and output tokens."""
INPUT_TOKENS = {"code": 900, "choice": 150, "essay": 60, "general": 300}
OUTPUT_TOKENS = {
    "small": {"code": 500, "choice": 4, "essay": 800, "general": 150},
    "medium": {"code": 700, "choice": 40, "essay": 1100, "general": 250},
    "large": {"code": 1500, "choice": 300, "essay": 1300, "general": 600},
}
"""Mean tokens; the large expert writes its reasoning even if one letter is enough."""
QUALITY = {
    "small": {"code": 0.3, "choice": 0.5, "essay": 0.6, "general": 0.6},
    "medium": {"code": 0.6, "choice": 0.6, "essay": 0.7, "general": 0.7},
    "large": {"code": 0.8, "choice": 0.9, "essay": 0.75, "general": 0.8},
}
MS_PER_TOKEN = 12.0


def declared(**changes: Any) -> Registry:
    usual = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    experts = [
        {"name": name, "prices": {"input": read, "output": written}} | usual for name, (read, written) in PRICES.items()
    ]
    categories = [{"name": name, "description": name} for name in CATEGORIES]
    pinned = {"general": "small"}
    return registry_of(**{"categories": categories, "experts": experts, "assignment": pinned} | changes)


def probe(number: int, category: str) -> Probe:
    text = f"{category} {number}"
    message = {"role": "user", "content": text}
    return Probe(text, (message,), text, category, "exact", "yes", None, 0.0, digest=text)


@dataclass(frozen=True)
class Replay:
    """A folder of scores of half of the probes, and the journal's entries of the other half."""

    folder: Path
    settings: Settings
    registry: Registry
    held_out: Sequence[Probe]
    cells: dict[tuple[str, str], Cell]

    def problem(self, registry: Registry | None = None) -> Problem:
        return plan_basis(self.settings, registry or self.registry, self.folder).plan.problem

    def billed(self, one: Probe, expert: str) -> float:
        """US dollars of a thousand requests like this one."""
        cell, prices = self.cells[one.prompt_id, expert], self.registry.expert(expert).prices
        assert cell.input_tokens is not None
        assert cell.output_tokens is not None
        return (cell.input_tokens * prices.input + cell.output_tokens * prices.output) / 1000


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    folder, registry = tmp_path_factory.mktemp("replay"), declared()
    (folder / "experts.yaml").write_bytes(orjson.dumps(registry.model_dump(mode="json", exclude_none=True)))
    settings = Settings.read({}, config=folder / "experts.yaml")
    probes = [probe(number, category) for number in range(1200) for category in CATEGORIES]
    random = np.random.default_rng(0)

    def spread(mean: float) -> int:
        return max(1, round(mean * random.gamma(4.0, 0.25)))

    whole = Scoring(registry, probes, (), registry.experts, None, 1)
    with Journal(folder / "journal.jsonl") as journal:
        for name, keys in whole.keys.items():
            for key, one in zip(keys, probes, strict=True):
                score = float(random.random() < QUALITY[name][one.category])
                written = spread(OUTPUT_TOKENS[name][one.category])
                tokens = spread(INPUT_TOKENS[one.category]), written, MS_PER_TOKEN * written
                journal.append(Cell(key, one.prompt_id, name, score, *tokens))
        known, held_out = probes[: len(probes) // 2], probes[len(probes) // 2 :]
        scoring = Scoring(registry, known, (), registry.experts, None, 1)
        run_scoring(scoring, settings, journal, folder, benchmark="own")
        cells = {(cell.prompt_id, cell.expert): cell for cell in journal.scored.values()}
    return Replay(folder, settings, registry, held_out, cells)


def test_the_predicted_cost_of_each_cell_is_within_a_tenth_of_what_held_out_answers_are_billed(replay: Replay) -> None:
    problem = replay.problem()
    for row, category in enumerate(problem.categories):
        own = [one for one in replay.held_out if one.category == category]
        for column, expert in enumerate(problem.experts):
            billed = np.mean([replay.billed(one, expert) for one in own])
            assert problem.use("mean_cost")[row, column] == pytest.approx(billed, rel=0.1), (category, expert)
            latency = np.mean([replay.cells[one.prompt_id, expert].latency_ms for one in own])
            assert problem.use("mean_latency_ms")[row, column] == pytest.approx(latency, rel=0.1), (category, expert)
    assumed = declared_uses(replay.registry, problem.categories).cost
    assert assumed is not None
    assert (np.abs(assumed / problem.use("mean_cost") - 1) > 0.5).sum() >= 6  # what was predicted before


def posteriors(probes: Sequence[Probe], categories: Sequence[str]) -> np.ndarray:
    random = np.random.default_rng(1)
    logits = random.normal(size=(len(probes), len(categories)))
    logits[np.arange(len(probes)), [categories.index(one.category) for one in probes]] += 5.0
    odds = np.exp(logits)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def routed_cost(replay: Replay, plan: Assignment) -> float:
    """The bill of the held-out probes, routed at the plan's prices."""
    traffic = posteriors(replay.held_out, plan.categories)
    chosen = [plan.experts[int(expected_utility(plan, one).argmax())] for one in traffic]
    return float(np.mean([replay.billed(one, name) for one, name in zip(replay.held_out, chosen, strict=True)]))


@pytest.mark.parametrize("limit", [1.5, 3.0, 6.0])
def test_a_plan_keeps_its_mean_cost_on_held_out_traffic(replay: Replay, limit: float) -> None:
    problem = replay.problem(declared(assignment={"general": "small"}, budget={"mean_cost": limit}))
    known = [probe(number, category) for number in range(600) for category in CATEGORIES]
    plan = solve(problem, traffic=posteriors(known, problem.categories))
    assert 0.9 * limit < routed_cost(replay, plan) <= 1.05 * limit


def measured(values: Sequence[Sequence[float]], categories: Sequence[int], *, names: int) -> MeasuredUses:
    """Uses of experts from rows of output tokens."""
    answers = {name: np.array(values, dtype=np.float64) for name in MEASURES}
    experts = [f"e{column}" for column in range(len(values[0]))]
    return MeasuredUses.of([f"c{row}" for row in range(names)], experts, np.eye(names)[list(categories)], answers)


def test_few_answers_of_categories_that_do_not_differ_are_drawn_to_the_expert_s_mean() -> None:
    random = np.random.default_rng(2)
    rows = [row for row in range(20) for _ in range(4)]
    tokens = 400 * random.gamma(2.0, 0.5, (len(rows), 3))
    found = measured(tokens.tolist(), rows, names=20).output_tokens
    raw = np.stack([tokens[np.array(rows) == row].mean(axis=0) for row in range(20)])
    assert np.abs(found / 400 - 1).mean() < 0.5 * np.abs(raw / 400 - 1).mean()


def test_categories_that_differ_by_a_hundred_times_keep_their_means() -> None:
    random = np.random.default_rng(3)
    rows = [0] * 40 + [1] * 40 + [2] * 40
    means = np.array([5.0, 500.0, 50.0])[rows]
    tokens = means[:, None] * random.gamma(4.0, 0.25, (120, 2))
    raw = np.stack([tokens[np.array(rows) == row].mean(axis=0) for row in range(3)])
    np.testing.assert_allclose(measured(tokens.tolist(), rows, names=3).output_tokens, raw, rtol=0.02)


def test_an_unmeasured_category_has_the_expert_s_mean_and_an_unmeasured_expert_none() -> None:
    uses = measured([[10, np.nan], [10, np.nan], [30, np.nan], [30, np.nan]], [0, 0, 1, 1], names=3)
    assert uses.output_tokens[2, 0] == pytest.approx(20)
    wider = uses.over(("c1", "new", "c0"), ("e7", "e0"))
    assert np.isnan(wider.output_tokens[:, 0]).all()
    np.testing.assert_allclose(wider.output_tokens[1, 1], uses.output_tokens[:, 0].mean())


def test_a_declaration_stands_where_nothing_was_measured() -> None:
    registry = declared(
        experts=[
            {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1", "latency_ms": 70}
            | {"prices": {"input": 2.0, "output": 4.0}, "active_parameters_b": 3}
            for name in ("small", "large")
        ]
    )
    values = {"input_tokens": 100.0, "output_tokens": 10.0, "latency_ms": np.nan}
    uses = MeasuredUses(("code",), ("small",), *(np.full((1, 1), values.get(name, np.nan)) for name in LOGGED_MEASURES))
    found = declared_uses(registry, ("code", "general"), measured=uses)
    np.testing.assert_allclose(found.cost, 0.24)  # as many tokens as the other
    assumed = (2 * ASSUMED_INPUT_TOKENS + 4 * ASSUMED_OUTPUT_TOKENS) / 1000
    np.testing.assert_allclose(declared_uses(registry, ("code",)).cost, assumed)
    np.testing.assert_array_equal(found.latency_ms, [[70, 70]] * 2)
    np.testing.assert_array_equal(found.active_b, [[3, 3]] * 2)
