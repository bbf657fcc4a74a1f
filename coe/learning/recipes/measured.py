"""Reads what `coe score` recorded, and builds the columns of a plan for all recipes.

Cascades and votes are replayed from recorded answers (`columns`). Recipes that write give new answers, so they cannot
be replayed: without a measurement by `coe score --recipe`, such a recipe is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coe.experts.recipes.agreement import NO_ANSWER, Array
from coe.experts.recipes.policy_file import WrittenArm
from coe.learning.evaluation.grades import read_grades
from coe.learning.evaluation.quality import Quality, filled
from coe.learning.evaluation.recipe_answers import MeasuredArm, read_recipe_answers
from coe.learning.evaluation.recorded_answers import read_answers
from coe.learning.recipes.answers import Answers
from coe.learning.recipes.arms import cost_by_category, expected_quality
from coe.learning.recipes.columns import MIN_PROMPTS, RecipeColumns, recipe_columns
from coe.learning.recipes.logged_arms import PastArms
from coe.learning.recipes.replay import of_calls, relative_use
from coe.learning.recipes.traffic import CACHED, TrafficLengths
from coe.mapping import MeasuredUses, Uses, declared_uses
from coe.mapping.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.registry import ArmSpec, ExpertSpec, RecipeSpec, Registry


def columns_of_recipes(
    folder: Path,
    data: Quality,
    registry: Registry,
    *,
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    only: Sequence[RecipeSpec] | None = None,
    streamed: float,
    expected: MeasuredUses | None = None,
    past: Sequence[PastArms] = (),
) -> RecipeColumns:
    """Return the columns of recipes by what a folder of scores has of the prompts `rows` of `data`.

    The categories of these prompts are all among `categories`. `only` are the recipes to measure, by default the
    declared and the proposed ones. `streamed` is the share of requests whose answers are streamed. With `expected`, the
    mean uses of requests, answers count as if they were as long as those to requests. The logged requests of `past`
    plans correct the uses of the arms.
    """
    wanted = registry.declared_recipes if only is None else only
    names = {recipe.name for recipe in wanted}
    recorded = read_answers(folder, data) if registry.recipes else None
    lengths, uses = None, None
    if expected is not None and registry.recipes and rows:
        uses = declared_uses(registry, categories, experts, measured=expected)
        lengths = TrafficLengths.of(expected, data, recorded, rows=rows, experts=experts, categories=categories)
        data, recorded = lengths.of_requests(data, recorded)
    judges = dict.fromkeys(recipe.judge for recipe in wanted if recipe.judge is not None)
    grades = read_grades(folder, data, list(judges))
    replayed = recipe_columns(
        registry,
        data,
        recorded,
        rows=rows,
        experts=experts,
        categories=categories,
        grades=grades if lengths is None else lengths.of_grades(grades),
        only=only,
        streamed=streamed,
        expected=uses,
        past=past,
    )
    writing = [arm for arm in registry.recipe_arms if arm.writing_digest and arm.recipe in names]
    measured = read_recipe_answers(folder, data, writing)
    written = _written_columns(writing, data, measured, rows, experts, categories, lengths, uses or Uses(), past)
    return replayed.joined(written)


def _written_columns(
    arms: Sequence[ArmSpec],
    data: Quality,
    measured: Mapping[str, MeasuredArm],
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    lengths: TrafficLengths | None,
    expected: Uses,
    past: Sequence[PastArms],
) -> RecipeColumns:
    """Return the columns of the chains and fuses that were measured, each corrected by the requests of `past` plans."""
    found = RecipeColumns()
    for arm in arms:
        absent = dict.fromkeys(one.name for one in arm.members if one.name not in experts)
        here = [row for row in rows if arm.name in measured and np.isfinite(measured[arm.name].scores[row])]
        if absent:
            found = found.joined(_left_out(arm, f"no scores of {', '.join(absent)}; run `coe score` for them"))
        elif len(here) < MIN_PROMPTS:
            count = f"it is measured on {len(here)} probes, and {MIN_PROMPTS} are needed" if here else "not measured"
            command = f"`coe score PROBES --out FOLDER --recipe {arm.recipe}` calls it for real"
            found = found.joined(_left_out(arm, f"{count}; {command}"))
        else:
            answers = _answers(data, here, experts, categories)
            column = _column(arm, measured[arm.name], answers, here, rows, lengths, expected)
            probes = np.bincount(answers.labels, minlength=len(categories)).astype(np.float64)
            found = found.joined(column.calibrated(past, lambda policies: Uses(), categories, probes))
    return found


def _left_out(arm: ArmSpec, reason: str) -> RecipeColumns:
    return RecipeColumns(left_out={arm.recipe: reason})


def _answers(data: Quality, prompts: Sequence[int], experts: Sequence[str], categories: Sequence[str]) -> Answers:
    """Return the experts' scores on some prompts; what they answered is not needed."""
    scores = data.scores[data.grid(prompts, experts)]
    nothing, classes = np.zeros(scores.shape), np.full(scores.shape, NO_ANSWER, dtype=np.int64)
    labels = data.labels(prompts, categories)
    return Answers(tuple(experts), classes, scores, nothing, nothing, labels, len(categories))


def _column(
    arm: ArmSpec,
    measured: MeasuredArm,
    answers: Answers,
    prompts: Sequence[int],
    rows: Sequence[int],
    lengths: TrafficLengths | None,
    expected: Uses,
) -> RecipeColumns:
    """Return the column of one arm; each member's calls are summed."""
    members = dict.fromkeys(one.name for one in arm.members)
    scores = measured.scores[list(prompts), np.newaxis]
    sizes = [len(names) for names in arm.steps]
    each = {name: values[list(prompts)] for name, values in measured.uses.items()}
    if lengths is not None:
        each = lengths.of_calls(each, arm.steps, answers.labels)
    shape = (len(prompts), len(arm.members))
    active_b = np.array([one.active_parameters_b for one in arm.members], dtype=np.float64)  # NaN for None
    times = filled(each["latency_ms"], np.array([one.latency_ms for one in arm.members], dtype=np.float64))

    def by_category(values: Array, use: Array | None = None) -> Array:
        relative = relative_use(use, answers, [(tuple(members), called)])
        return cost_by_category(answers, values[:, np.newaxis], relative=relative)

    called = np.array([sum(one.name == name for one in arm.members) for name in members], dtype=np.float64)
    return RecipeColumns(
        written={arm.name: WrittenArm(arm.recipe, arm.steps, arm.writing_digest)},
        scores=measured.scores[list(rows), np.newaxis],
        quality=expected_quality(answers, scores),
        uses=Uses(
            active_b=by_category(of_calls(sizes, np.broadcast_to(active_b, shape), "active_b")),
            cost=by_category(of_calls(sizes, _dollars(arm.members, each), "dollars"), expected.cost),
            latency_ms=by_category(of_calls(sizes, times, "latency_ms"), expected.latency_ms),
            calls={arm.name: np.tile(called, (answers.n_categories, 1))},
        ),
    )


def _dollars(members: Sequence[ExpertSpec], each: Mapping[str, Array]) -> Array:
    """Return the US dollars per thousand requests of each call; tokens that were not counted are assumed."""
    given = filled(each["input_tokens"], ASSUMED_INPUT_TOKENS)
    written = filled(each["output_tokens"], ASSUMED_OUTPUT_TOKENS)
    cached = filled(each.get(CACHED, np.zeros_like(given)), 0.0)
    prices = np.array([(one.prices.input, one.prices.output, one.prices.cached) for one in members])
    return np.asarray(((given - cached) * prices[:, 0] + written * prices[:, 1] + cached * prices[:, 2]) / 1000)
