"""Corrects the expected uses of arms by the logged requests that they answered.

Replay of recorded answers gives the uses of an arm on the probes. How often it continues there is uncertain, above
all for an arm that mostly stops early. `LoggedArms` sums what arms used in service, by the plan whose policies they
had. The ratio to the replay of those same policies corrects the arms of the next plan, whose policies differ little.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from coe.experts.recipes.agreement import Array
from coe.experts.recipes.policy import RecipePolicy
from coe.experts.recipes.policy_file import ArmPolicies, WrittenArm
from coe.learning.estimation.logged_uses import unusable
from coe.learning.recipes.arms import COST_PSEUDO_COUNT
from coe.mapping import Uses
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import Registry

MAX_PLANS = 4
"""Plans whose arms are measured, the latest ones of the log."""
MAX_CELLS = 50_000
"""Arms and categories of a plan that are summed."""
MEASURES = ("active_b", "cost", "latency_ms")
"""Fields of `Uses` that are corrected; calls are corrected too."""
CALLS = "calls of "
"""Prefix of a measure: the calls of a member by an arm."""
MAX_RATIO = 4.0
"""Most that the logged use of few requests is above or below the replayed one: more is an accident. The limit is
squared with as many requests as the replay counts for, cubed with twice as many, and so on."""
COMPLETE_SHARE = 0.99
"""Least share of a cell's requests with a known use. Those with an unknown one differ: a later member was called."""
_ENDED = frozenset({"answered", "unreadable", "cut_off", "unverified", "graded", "ungraded"})
"""Outcomes of calls that are charged; the others have no usage, or a part of it."""
_REQUESTS = "requests"
_NOTHING = (0.0, 0.0)


class LoggedArms:
    """Counts and sums of the uses of arms by plan, arm and category, in the units of `Uses`.

    Dollars are at the current prices. Requests that another expert answered in the end do not count.
    """

    def __init__(self, registry: Registry) -> None:
        self._specs = {name: registry.expert(name) for name in registry.expert_names}
        self._waiting = {name for name, spec in self._specs.items() if registry.devices_of(spec)}
        self._categories = {name: row for row, name in enumerate(registry.category_names)}
        self._plans: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = {}

    def add(self, record: RoutingRecord) -> None:
        """Add a record that an arm of a plan answered."""
        if not (record.plan and record.recipe and record.steps) or record.fallback_from:
            return
        if unusable(record, self._categories):
            return
        cells = self._plans.pop(record.plan, {})
        self._plans[record.plan] = cells  # the latest is the last one
        if len(self._plans) > MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        cell = record.expert, record.category
        if cell not in cells and len(cells) >= MAX_CELLS:
            return
        measures = cells.setdefault(cell, {})
        for measure, value in self._uses_of(record).items():
            sums = measures.setdefault(measure, [0.0, 0.0])
            sums[0] += 1.0
            sums[1] += value

    @property
    def plans(self) -> tuple[str, ...]:
        """Return the versions of the plans whose arms answered requests."""
        return tuple(self._plans)

    def sums(self, plan: str, arm: str, measure: str, categories: Sequence[str]) -> Array:
        """Return count and sum of a measure of an arm, shape (n_categories, 2).

        A request without a call of a member counts for the member's calls too. Cost and active parameters that some
        requests of a cell lack are left out.
        """
        cells = self._plans.get(plan, {})
        found = [_sums_of(cells.get((arm, category), {}), measure) for category in categories]
        return np.array(found, dtype=np.float64).reshape(len(categories), 2)

    def waits(self, members: Iterable[str]) -> bool:
        """Return True if a member shares a device: times of its arm include waits of the plan then in use."""
        return not self._waiting.isdisjoint(members)

    def _uses_of(self, record: RoutingRecord) -> dict[str, float]:
        """Return the known measures of a request."""
        called = [call for call in record.steps if call.outcome != "skipped"]
        calls = Counter(call.expert for call in called)
        found = {_REQUESTS: 1.0} | {CALLS + name: float(made) for name, made in calls.items()}
        if any(call.expert not in self._specs for call in called):
            return found
        if record.attempts == 1:
            found["latency_ms"] = record.total_ms
        sizes = [self._specs[call.expert].active_parameters_b for call in called]
        if None not in sizes:
            found["active_b"] = sum(size for size in sizes if size is not None)
        if not any(call.outcome in _ENDED and call.output_tokens is None for call in called):
            found["cost"] = sum(map(self._cost, called))
        return found

    def _cost(self, call: RecipeCall) -> float:
        """Return US dollars per thousand such calls."""
        prices = self._specs[call.expert].prices
        return 1000 * prices.cost(call.input_tokens or 0, call.output_tokens or 0, call.cached_tokens or 0)


def _sums_of(measures: Mapping[str, Sequence[float]], measure: str) -> Sequence[float]:
    requests, known = measures.get(_REQUESTS, _NOTHING)[0], measures.get(measure, _NOTHING)
    if measure.startswith(CALLS):
        return requests, known[1]
    complete = measure == "latency_ms" or known[0] >= COMPLETE_SHARE * requests
    return known if complete else _NOTHING


@dataclass(frozen=True, slots=True, eq=False)
class PastArms:
    """The arms of a plan that answered logged requests.

    `changed` are the experts that another model or other settings replaced since: arms that call them are left out.
    """

    plan: str
    policies: ArmPolicies
    log: LoggedArms
    changed: frozenset[str] = frozenset()

    def matching(self, arms: Mapping[str, RecipePolicy], categories: Sequence[str]) -> dict[str, RecipePolicy]:
        """Return the policy that this plan had, over `categories`, for each arm with the same name, steps and judge."""
        before = self.policies.over(categories).by_arm
        return {
            name: before[name]
            for name, one in arms.items()
            if name in before
            and _shape(before[name]) == _shape(one)
            and self.changed.isdisjoint((*one.members, one.judge))
        }

    def written(self, arms: Mapping[str, WrittenArm]) -> list[str]:
        """Return the arms of chains and fuses which this plan had too."""
        return [
            name
            for name, one in arms.items()
            if self.policies.written.get(name) == one and self.changed.isdisjoint(chain.from_iterable(one.steps))
        ]


def _shape(policy: RecipePolicy) -> tuple[object, ...]:
    return policy.recipe, tuple(step.members for step in policy.steps), policy.judge


class Calibration:
    """Compares logged uses of arms with those that replay gives for the same requests, by arm and measure.

    `members` are those of each arm, in the order of its calls in `Uses`; `probes` (n_categories,) counts the prompts
    that were replayed.
    """

    def __init__(self, members: Mapping[str, Sequence[str]], categories: Sequence[str], probes: Array) -> None:
        self._members, self._categories, self._probes = members, categories, probes
        self._logged: defaultdict[tuple[str, str], Array] = defaultdict(lambda: np.zeros((len(categories), 2)))
        self._replayed: defaultdict[tuple[str, str], Array] = defaultdict(lambda: np.zeros(len(categories)))

    def add(self, past: PastArms, replayed: Uses, arms: Mapping[str, int]) -> None:
        """Add the requests to some arms of a past plan; `arms` has their columns in the uses of its policies."""
        for arm, number in arms.items():
            measures = [name for name in MEASURES if name != "latency_ms" or not past.log.waits(self._members[arm])]
            columns = {name: found[:, number] for name in measures if (found := getattr(replayed, name)) is not None}
            calls = dict(zip(self._members[arm], replayed.calls[arm].T, strict=True))
            for measure, values in (columns | {CALLS + name: made for name, made in calls.items()}).items():
                known = np.isfinite(values) & ((values > 0) | measure.startswith(CALLS))
                sums = np.where(known[:, None], past.log.sums(past.plan, arm, measure, self._categories), 0.0)
                self._logged[arm, measure] += sums
                self._replayed[arm, measure] += sums[:, 0] * np.where(known, values, 0.0)

    def corrected(self, uses: Uses, arms: Sequence[str]) -> Uses:
        """Return the uses of `arms` times the ratios of logged to replayed uses, and the corrected calls."""
        found = {name: getattr(uses, name) for name in MEASURES}
        scaled = {
            name: None if values is None else values * self._ratios([(arm, name) for arm in arms])
            for name, values in found.items()
        }
        calls = {
            arm: self._calls(made, [(arm, CALLS + name) for name in self._members[arm]])
            for arm, made in uses.calls.items()
        }
        return replace(uses, calls=calls, **scaled)

    def _ratios(self, columns: Sequence[tuple[str, str]]) -> Array:
        """Return the ratio in each category of some measures of arms, shape (n_categories, n_columns).

        Its logarithm is shrunk: a logged request counts as much as a probe, or as one of the prompts that the replay is
        shrunk by.
        """
        count, logged, replayed = self._sums(columns)
        ratio = np.divide(logged, replayed, out=np.ones_like(replayed), where=replayed > 0)
        limit = np.log(MAX_RATIO) * (1 + count / self._behind)
        log_ratio = np.clip(np.log(np.maximum(ratio, np.finfo(np.float64).tiny)), -limit, limit)
        return np.asarray(np.exp(log_ratio * count / (count + self._behind)))

    def _calls(self, made: Array, columns: Sequence[tuple[str, str]]) -> Array:
        """Return the calls `made` of the members of an arm, corrected; both of shape (n_categories, n_columns).

        The means of log and replay are weighted, so a member is corrected that replay never calls. Of another policy
        than the logged one, fewer calls are a ratio and more are added, at most up to the logged mean.
        """
        count, logged, replayed = self._sums(columns)
        fewer = np.divide(logged, replayed, out=np.ones_like(replayed), where=logged < replayed)
        mean = logged / np.maximum(count, 1.0)
        more = np.minimum(made + (logged - replayed) / (count + self._behind), np.maximum(made, mean))
        share = count / (count + self._behind)
        return np.where(logged > replayed, more, made * (1 + share * (fewer - 1)))

    def _sums(self, columns: Sequence[tuple[str, str]]) -> tuple[Array, Array, Array]:
        """Return the count, the logged and the replayed sum of measures of arms, each (n_categories, n_columns)."""
        logged = np.stack([self._logged[one] for one in columns], axis=1)
        return logged[..., 0], logged[..., 1], np.column_stack([self._replayed[one] for one in columns])

    @property
    def _behind(self) -> Array:
        """Return how many prompts the replay counts for, shape (n_categories, 1)."""
        return self._probes[:, None] + COST_PSEUDO_COUNT
