"""Measures the uses of experts in the routing log: tokens, dollars and times of users' requests by category and expert.

`LoggedUses` sums records page by page, so its memory does not grow with the log. Each expert's requests are those that
routing sent to it, so a cell describes the traffic that this expert got and not all requests of the category.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import TEXT_APIS
from coe.planning import LOGGED_MEASURES, Plan
from coe.planning.score_table import ScoreTable
from coe.records.record import RecipeCall, RoutingRecord

Array = NDArray[np.float64]
MIN_TRAFFIC_REQUESTS = 1_000
"""Requests that the log must have for its mix of categories to be used."""
MAX_SAMPLED_POSTERIORS = 10_000
"""Posteriors of a router's requests that are kept, a uniform sample."""
MAX_ROUTERS = 4
"""Routers whose mix of traffic is kept."""
MAX_ARMS = 2_000
"""Different names of experts and arms that are counted; the log may hold names that are no longer declared."""
BILLED = "dollars"
"""Measure of the cost of a request in US dollars, as recorded."""
_MEASURES = (*LOGGED_MEASURES, BILLED)
_NUMBER = {measure: number for number, measure in enumerate(_MEASURES)}
_COMPLETE = ("answered", "unreadable")
"""Outcomes of a member's call that ran to its end."""

Values = Mapping[str, float | None]


class LoggedUses:
    """Sums over the records of `categories`. `requests` counts the records that were used, by category and arm;
    `left_out` counts the others by reason. `traffic` has the mix of all requests that routing decided, by router.

    A request of a recipe counts for the recipe's arm, and for each member of the first step: the members of later steps
    get selected requests only.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = tuple(categories)
        self.left_out: Counter[str] = Counter()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.traffic = TrafficMix(categories)
        self._row = {name: row for row, name in enumerate(categories)}
        self._sums: dict[str, list[float]] = {}
        """By arm: count, sum and sum of squares, flat from shape (n_measures, n_categories, 3); a list, because numpy
        takes five times as long to change one element."""

    @classmethod
    def of(cls, pages: Iterable[Sequence[RoutingRecord]], categories: Sequence[str]) -> LoggedUses:
        """Sum all pages."""
        found = cls(categories)
        for page in pages:
            for record in page:
                found.add(record)
        return found

    def add(self, record: RoutingRecord) -> None:
        """Add a record, or count it under `left_out`."""
        if record.reason not in ("", "pinned", "rule", "cached") and not record.purpose:
            self.traffic.add(record.router, record.probabilities)
        if reason := unusable(record, self._row):
            self.left_out[reason] += 1
            return
        if record.expert not in self._sums and len(self._sums) >= MAX_ARMS:
            self.left_out["of further names"] += 1
            return
        self.requests[record.category, record.expert] += 1
        for arm, values in _observations(record):
            self._add(arm, self._row[record.category], values)

    def _add(self, arm: str, row: int, values: Values) -> None:
        if (sums := self._sums.get(arm)) is None:
            if len(self._sums) >= MAX_ARMS:
                return
            sums = self._sums[arm] = [0.0] * (len(_MEASURES) * len(self.categories) * 3)
        for measure, value in values.items():
            if value is not None:
                cell = (_NUMBER[measure] * len(self.categories) + row) * 3
                sums[cell] += 1.0
                sums[cell + 1] += value
                sums[cell + 2] += value * value

    def table(self, measure: str, arms: Sequence[str]) -> ScoreTable:
        """Return mean, variance and count of a measure by category and arm; arms without records have count 0."""
        number = _MEASURES.index(measure)
        size = len(self.categories) * 3
        nothing = [0.0] * size
        flat = [self._sums[arm][number * size :][:size] if arm in self._sums else nothing for arm in arms]
        sums = np.array(flat).reshape(len(arms), len(self.categories), 3)
        return ScoreTable.of_sums(self.categories, arms, *np.moveaxis(sums.swapaxes(0, 1), -1, 0))

    def tables(self, arms: Sequence[str]) -> dict[str, ScoreTable]:
        """Return the tables of LOGGED_MEASURES."""
        return {measure: self.table(measure, arms) for measure in LOGGED_MEASURES}


class TrafficMix:
    """Posteriors of requests by the router that gave them; the MAX_ROUTERS latest ones are kept.

    Gateways may use different routers at a time, and their records alternate in the log.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self._categories = dict.fromkeys(categories).keys()
        self._by_router: dict[str, _RouterMix] = {}

    def add(self, router: str, probabilities: Mapping[str, float]) -> None:
        """Add one request; those over other categories than the declared ones do not count."""
        if probabilities.keys() != self._categories:
            return
        mix = self._by_router.pop(router, None) or _RouterMix(tuple(self._categories))
        self._by_router[router] = mix  # the latest is the last one
        if len(self._by_router) > MAX_ROUTERS:
            del self._by_router[next(iter(self._by_router))]
        mix.add(probabilities)

    def over(self, categories: Sequence[str], *, router: str) -> tuple[Array, Array] | None:
        """Return the weight of each category, shape (n_categories,), and the sampled posteriors, (n_requests,
        n_categories), of this router; None if it has too few requests, or a category has none."""
        mix = self._by_router.get(router)
        return None if mix is None else mix.over(categories)


class _RouterMix:
    """The sum of the posteriors of one router, and a uniform sample of them (reservoir sampling)."""

    def __init__(self, categories: Sequence[str]) -> None:
        self._total = dict.fromkeys(categories, 0.0)
        self._sample: list[Mapping[str, float]] = []
        self._count = 0
        self._random = random.Random(0)  # noqa: S311  (a sample, no secret)

    def add(self, probabilities: Mapping[str, float]) -> None:
        for name, probability in probabilities.items():
            self._total[name] += probability
        if self._count < MAX_SAMPLED_POSTERIORS:
            self._sample.append(probabilities)
        elif (place := self._random.randrange(self._count + 1)) < MAX_SAMPLED_POSTERIORS:
            self._sample[place] = probabilities
        self._count += 1

    def over(self, categories: Sequence[str]) -> tuple[Array, Array] | None:
        total = np.array([self._total[name] for name in categories])
        if self._count < MIN_TRAFFIC_REQUESTS or not (total > 0).all():
            return None
        return total, np.array([[one[name] for name in categories] for one in self._sample])


def unusable(record: RoutingRecord, categories: Mapping[str, int]) -> str:
    """Return why a record does not show what an answer uses; empty if it does."""
    if record.purpose:
        return "requests of CoE's own commands"
    if record.outcome != "ok":
        return "failed or aborted"
    if not record.attempts:
        return "answered without a call"
    if record.api not in TEXT_APIS:
        return "embeddings" if record.api == "embeddings" else "not answered with text"
    return "" if record.category in categories else "of a category that is not planned"


def _observations(record: RoutingRecord) -> Iterator[tuple[str, Values]]:
    """Yield the arms that a record shows, with their measures. Times include those of calls that failed before, so
    only requests with a single attempt have them, and tokens those of a recipe that failed before."""
    single = record.attempts == 1
    after_recipe = bool(record.steps and record.fallback_from)
    known = record.input_tokens is not None and record.output_tokens is not None and not after_recipe
    yield (
        record.expert,
        {
            "input_tokens": record.input_tokens if known else None,
            "output_tokens": record.output_tokens if known else None,
            "cached_tokens": (record.cached_tokens or 0) if known else None,
            "first_token_ms": record.first_token_ms if single and record.stream else None,
            "latency_ms": record.total_ms if single else None,
            BILLED: None if after_recipe else record.cost,
        },
    )
    for call in record.steps:
        if call.step == 0 and call.outcome in _COMPLETE and call.input_tokens is not None:
            yield call.expert, _call_values(call)


def _call_values(call: RecipeCall) -> Values:
    known = call.output_tokens is not None
    return {
        "input_tokens": call.input_tokens if known else None,
        "output_tokens": call.output_tokens,
        "cached_tokens": (call.cached_tokens or 0) if known else None,
        "latency_ms": call.ms,
    }


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
