"""Measures the uses of experts in the log's frame: tokens, dollars and times of requests by category and expert.

Each expert's requests are those that routing sent to it, so a cell describes the traffic that this expert got and not
all requests of the category.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import TEXT_APIS
from coe.learning.experience import posteriors
from coe.learning.log_frame import LogFrame, indices, numbers
from coe.planning.plan import Plan
from coe.planning.score_table import ScoreTable
from coe.planning.uses import LOGGED_MEASURES

Array = NDArray[np.float64]
MIN_TRAFFIC_REQUESTS = 1_000
"""Requests that the log must have for its mix of categories to be used."""
MAX_SAMPLED_POSTERIORS = 10_000
"""Posteriors of a router's requests that are kept, a uniform sample."""
BILLED = "dollars"
"""Measure of the cost of a request in US dollars, as recorded."""
_MEASURES = (*LOGGED_MEASURES, BILLED)
_COMPLETE = ("answered", "unreadable")
"""Outcomes of a member's call that ran to its end."""
LEFT_OUT = (
    "failed or aborted",
    "answered without a call",
    "embeddings",
    "not answered with text",
    "of a category that is not planned",
)
"""Why a request does not show what an answer uses."""


@dataclass(frozen=True, slots=True, eq=False)
class LoggedUses:
    """Sums over a frame. `requests` counts the requests that were used, by category and option; `left_out` counts the
    others by reason.

    A request of a recipe counts for the recipe's option, and for each member of the first step: the members of later
    steps get selected requests only.
    """

    categories: tuple[str, ...]
    requests: Counter[tuple[str, str]]
    left_out: Mapping[str, int]
    sums: Mapping[str, Array]
    """By option: count, sum and sum of squares, shape (n_measures, n_categories, 3)."""
    frame: LogFrame

    @classmethod
    def of(cls, frame: LogFrame, categories: Sequence[str]) -> LoggedUses:
        """Sum a frame."""
        table = frame.table
        problems = (
            indices(table["outcome"], ("ok",)) < 0,
            numbers(table["attempts"]) == 0,
            indices(table["api"], ("embeddings",)) >= 0,
            indices(table["api"], sorted(TEXT_APIS)) < 0,
            indices(table["category"], categories) < 0,
        )
        problem = np.select(problems, np.arange(len(LEFT_OUT)), -1)
        used = table.filter(problem < 0)
        names, category, values = _observations(used, categories)
        options = names.dictionary_encode()
        codes, size = options.indices.to_numpy(), len(categories)
        sums = np.zeros((len(options.dictionary), len(_MEASURES), size, 3))
        for number, column in enumerate(values):
            known = np.isfinite(column)
            cell, value = (codes * size + category)[known], column[known]
            for place, weights in enumerate((None, value, value * value)):
                counted = np.bincount(cell, weights=weights, minlength=len(sums) * size)
                sums[:, number, :, place] = counted.reshape(-1, size)
        answered = zip(used["category"].to_pylist(), used["expert"].to_pylist(), strict=True)
        return cls(
            tuple(categories),
            requests=Counter(answered),
            left_out={name: int(n) for number, name in enumerate(LEFT_OUT) if (n := (problem == number).sum())},
            sums=dict(zip(options.dictionary.to_pylist(), sums, strict=True)),
            frame=frame,
        )

    def table(self, measure: str, options: Sequence[str]) -> ScoreTable:
        """Return mean, variance and count of a measure by category and option; those without requests have count 0."""
        nothing = np.zeros((len(_MEASURES), len(self.categories), 3))
        sums = np.stack([self.sums.get(name, nothing)[_MEASURES.index(measure)] for name in options], axis=1)
        return ScoreTable.of_sums(self.categories, options, *np.moveaxis(sums, -1, 0))

    def tables(self, options: Sequence[str]) -> dict[str, ScoreTable]:
        """Return the tables of LOGGED_MEASURES."""
        return {measure: self.table(measure, options) for measure in LOGGED_MEASURES}

    def mix(self, categories: Sequence[str], *, router: str) -> tuple[Array, Array] | None:
        """Return the weight of each category, shape (m,), and a sample of posteriors, (n_requests, m), of the requests
        that this router decided over the declared categories; None if they are too few, or a category has none."""
        table = self.frame.table
        decided = indices(table["reason"], ("", "pinned", "rule", "cached")) < 0
        table = table.filter(decided & (indices(table["router"], (router,)) >= 0))
        maps = table["probabilities"].combine_chunks()
        known = np.append(0, np.cumsum(indices(maps.keys, self.categories) >= 0))
        of_declared = np.diff(known[maps.offsets.to_numpy()]) == len(self.categories)
        table = table.filter(of_declared & (np.diff(maps.offsets) == len(self.categories)))
        columns = [self.categories.index(name) for name in categories]
        found = posteriors(table, self.categories)[:, columns]
        if len(found) < MIN_TRAFFIC_REQUESTS or not (found.sum(axis=0) > 0).all():
            return None
        sample = np.random.default_rng(0).permutation(len(found))[:MAX_SAMPLED_POSTERIORS]
        return found.sum(axis=0), found[np.sort(sample)]


def _observations(table: Any, categories: Sequence[str]) -> tuple[Any, NDArray[np.int64], Array]:
    """The option, category and measures of each request and of each call in a recipe's first step: arrays of n names, n
    indices, and shape (n_measures, n), NaN where a measure is unknown.

    Times include those of calls that failed before, so only requests with a single attempt have them, and tokens those
    of a recipe that failed before.
    """
    import pyarrow

    steps = table["steps"].combine_chunks()
    request, calls = np.repeat(np.arange(len(table)), np.diff(steps.offsets)), steps.values
    after_recipe = (np.diff(steps.offsets) > 0) & (indices(table["fallback_from"], ("",)) < 0)
    single = numbers(table["attempts"]) == 1
    given, written = numbers(table["input_tokens"]), numbers(table["output_tokens"])
    known = np.isfinite(given) & np.isfinite(written) & ~after_recipe
    whole = {
        "input_tokens": np.where(known, given, np.nan),
        "output_tokens": np.where(known, written, np.nan),
        "cached_tokens": np.where(known, np.nan_to_num(numbers(table["cached_tokens"])), np.nan),
        "latency_ms": np.where(single, numbers(table["total_ms"]), np.nan),
        BILLED: np.where(after_recipe, np.nan, numbers(table["cost"])),
    }
    call = {name: numbers(calls.field(name)) for name in ("step", "input_tokens", "output_tokens", "ms")}
    counted = (call["step"] == 0) & np.isfinite(call["input_tokens"])
    counted &= indices(calls.field("outcome"), _COMPLETE) >= 0
    known = np.isfinite(call["output_tokens"])
    nothing = np.full(len(request), np.nan)
    members = {
        "input_tokens": np.where(known, call["input_tokens"], np.nan),
        "output_tokens": call["output_tokens"],
        "cached_tokens": np.where(known, np.nan_to_num(numbers(calls.field("cached_tokens"))), np.nan),
        "latency_ms": call["ms"],
    }
    names = (table["expert"].cast("string").combine_chunks(), calls.field("expert").cast("string").filter(counted))
    category = indices(table["category"], categories)
    values = [np.append(whole[name], members.get(name, nothing)[counted]) for name in _MEASURES]
    return pyarrow.concat_arrays(names), np.append(category, category[request[counted]]), np.stack(values)


def uses_report(plan: Plan, logged: LoggedUses | None) -> dict[str, Any]:
    """Return the expected uses of a request by category and column, and the number of logged requests behind them.

    `dollars` are of one request; `active_b_tokens` are billions of active parameters times tokens. Null where unknown.
    """
    problem = plan.problem
    means = plan.measured_uses.over(problem.categories, problem.experts)
    tables = means.arrays()
    tables["dollars"] = problem.use("mean_cost") / 1000
    tables["latency_ms"] = problem.use("mean_latency_ms")
    tables["active_b_tokens"] = problem.use("mean_active_b") * (means.input_tokens + means.output_tokens)
    requests = logged.requests if logged is not None else Counter[tuple[str, str]]()

    def cell(row: int, column: int) -> dict[str, float | None]:
        values = {name: float(table[row, column]) for name, table in tables.items()}
        return {name: round(value, 9) if np.isfinite(value) else None for name, value in values.items()}

    return {
        "logged": sum(requests.values()),
        "left_out": dict(logged.left_out) if logged is not None else {},
        "by_category": {
            category: {
                name: {"requests": requests[category, name], **cell(row, column)}
                for column, name in enumerate(problem.experts)
            }
            for row, category in enumerate(problem.categories)
        },
    }
