"""Recipes are fitted and priced for requests whose answers are longer than those to the probes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.learning.evaluation.grades import Grades
from coe.learning.evaluation.quality import read_quality
from coe.learning.recipes.traffic import TrafficLengths
from coe.mapping import MeasuredUses
from tests.recipes.planned import CAREFUL, CATEGORIES, DECLARED, EXPERTS, columns, write_config, write_table

PANEL = "recipes: [{name: panel, vote: [a, b]}]\n"
CAPPED = CAREFUL.replace("[[a, b], large]}]", "[b, large], max_tokens: {b: 150}}]")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Probes of code and law, each answer of 100 output tokens."""
    return write_config(tmp_path)


def expected_uses(written: float, *, given: float = 0.0, cached: float = 0.0, general: float = 1.0) -> MeasuredUses:
    """Uses of requests: `written` output tokens, in the category `general` times as many."""
    scale = np.array([[1.0], [1.0], [general]]) * np.ones((1, 3))
    return MeasuredUses(
        CATEGORIES,
        EXPERTS,
        input_tokens=given * scale,
        output_tokens=written * scale,
        latency_ms=100.0 * scale,
        cached_tokens=cached * scale,
        first_token_ms=np.full((3, 3), np.nan),
    )


def rewrite_answers(folder: Path, **changes: Any) -> None:
    """Change or remove (None) fields of all recorded answers."""
    path = folder / "answers.jsonl"
    rows = [json.loads(line) | changes for line in path.read_text().splitlines()]
    write_table(path, [{name: value for name, value in row.items() if value is not None} for row in rows])


def test_longer_answers_cost_as_much_more_and_the_recipe_stops_at_the_same_ones(config: Path) -> None:
    random = np.random.default_rng(0)
    path = config.parent / "answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lengths = random.lognormal(np.log(100), 0.8, len(rows)).round()
    write_table(path, [row | {"output_tokens": int(length)} for row, length in zip(rows, lengths, strict=True)])
    plain = columns(config)
    longer = columns(config, expected=expected_uses(written=4 * lengths.mean()))
    for arm in ("careful@1", "careful@2", "careful@3"):
        np.testing.assert_allclose(longer.uses.calls[arm], plain.uses.calls[arm], atol=0.03)
    np.testing.assert_allclose(longer.uses.cost[:2] / plain.uses.cost[:2], 4.0, rtol=0.05)
    np.testing.assert_allclose(longer.scores.mean(axis=0), plain.scores.mean(axis=0), atol=0.01)


def test_a_cap_cuts_off_answers_that_are_longer_than_those_to_the_probes(config: Path) -> None:
    plain, longer = columns(config, CAPPED), columns(config, CAPPED, expected=expected_uses(written=200.0))
    assert plain.uses.calls["careful@1"][:2, 1].max() < 1.0
    np.testing.assert_allclose(longer.uses.calls["careful@1"], 1.0)  # b is cut off, so large is always called
    np.testing.assert_allclose(longer.uses.cost[:2, 0], (150 * 10 + 200 * 120) / 1000)


def test_a_category_without_probes_costs_more_where_its_requests_do(config: Path) -> None:
    alike = columns(config, expected=expected_uses(written=100.0))
    dear = columns(config, expected=expected_uses(100.0, general=4.0))
    np.testing.assert_allclose(dear.uses.cost[:2], alike.uses.cost[:2])
    np.testing.assert_allclose(dear.uses.cost[2], 4 * alike.uses.cost[2])
    np.testing.assert_allclose(dear.uses.latency_ms[2], 4 * alike.uses.latency_ms[2])
    np.testing.assert_allclose(dear.uses.calls["careful@1"], alike.uses.calls["careful@1"])


def test_cached_input_is_priced_as_such(config: Path) -> None:
    declared = DECLARED.replace("prices: {output: 10}", "prices: {input: 10, cached_input: 1}")
    rewrite_answers(config.parent, input_tokens=50)
    expected = expected_uses(written=100.0, given=200.0, cached=150.0)
    found = columns(config, PANEL, declared=declared, expected=expected)
    np.testing.assert_allclose(found.uses.cost[:2, 0], 2 * (50 * 10 + 150 * 1) / 1000)


def test_answers_without_counted_tokens_cost_what_requests_use(config: Path) -> None:
    rewrite_answers(config.parent, input_tokens=None, output_tokens=None, latency_ms=None, output_chars=800)
    found = columns(config, PANEL, expected=expected_uses(written=400.0, given=10.0))
    np.testing.assert_allclose(found.uses.cost[:2, 0], 2 * 400 * 10 / 1000)
    np.testing.assert_allclose(found.uses.latency_ms[:2, 0], 100.0)


def test_measured_calls_and_grades_count_with_the_lengths_of_requests(config: Path) -> None:
    rewrite_answers(config.parent, input_tokens=50)
    data = read_quality(config.parent, benchmark="own")
    lengths = TrafficLengths.of(
        expected_uses(written=200.0, given=150.0, cached=30.0),
        data,
        None,
        rows=range(len(data.prompts)),
        experts=EXPERTS,
        categories=CATEGORIES,
    )
    measured = {"input_tokens": [[40.0, 90.0]], "output_tokens": [[50.0, 20.0]], "latency_ms": [[5.0, np.nan]]}
    calls = lengths.of_calls({name: np.array(one) for name, one in measured.items()}, [["a"], ["large"]], np.array([1]))
    np.testing.assert_allclose(calls["input_tokens"], [[120, 3 * 40 + 2 * 50]])
    np.testing.assert_allclose(calls["output_tokens"], [[100, 40]])
    np.testing.assert_allclose(calls["latency_ms"], [[5, np.nan]])
    np.testing.assert_allclose(calls["cached_tokens"], [[24, 24]])
    fused = lengths.of_calls({name: np.array(one) for name, one in measured.items()}, [["a", "large"]], np.array([1]))
    np.testing.assert_allclose(fused["input_tokens"], [[120, 270]])
    nothing = np.zeros((0, 0))
    one = Grades(nothing, nothing > 0, {"input_tokens": 300.0, "output_tokens": 2.0, "latency_ms": 9.0})
    found = lengths.of_grades({"large": one, "other": one})
    longer = (150 + 200) / (50 + 100)
    for judge in ("large", "other"):
        assert found[judge].uses == pytest.approx(
            {"input_tokens": 300 * longer, "output_tokens": 2.0, "latency_ms": 9.0}
        )
