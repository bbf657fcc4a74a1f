"""Sums the dollars of the routing log by expert, category, API key and tenant, next to what one expert would have cost.

What an expert would have written is the mean length of its answers in the category; where it has too few, the length of
the answer that was given.

`Spend` adds records one by one, so its memory does not grow with the log. All requests count, also those of CoE's own
commands, which the rest of `coe report` leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import Registry

Dimension = Literal["expert", "category", "key", "tenant"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
MAX_ROWS = 2_000
"""Rows of a dimension, including OTHER for further names. The log may hold names that are no longer declared."""
OTHER = "(other)"
MIN_ANSWERS = 30
"""Answers of an expert in a category that its mean length there needs."""
NOTE = (
    f"'always' takes the mean length of the expert's answers in the same category, where {MIN_ANSWERS} are logged "
    "(measured), else the length of the given answer, and current prices; the interval is of the measured part"
)


@dataclass(slots=True)
class Amounts:
    """Cost and tokens of some requests. `unpriced` counts those whose cost is partly unknown."""

    requests: int = 0
    unpriced: int = 0
    dollars: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, dollars: float, input_tokens: int, output_tokens: int, *, unpriced: bool) -> None:
        """Add one request, or the share of one."""
        self.requests += 1
        self.unpriced += unpriced
        self.dollars += dollars
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


@dataclass(slots=True)
class Compared:
    """Tokens of a category's requests, and of single experts' answers: their number, output tokens and squares."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    answers: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, expert: str | None, input_tokens: int, output_tokens: int, cached_tokens: int) -> None:
        """Add a request; the `expert` is None for a recipe."""
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.cached_tokens += cached_tokens
        if expert is not None:
            count, total, squares = self.answers.get(expert, (0, 0, 0))
            self.answers[expert] = count + 1, total + output_tokens, squares + output_tokens**2

    def written_by(self, expert: str) -> tuple[float, float, bool]:
        """Return the output tokens that the expert would have written, their variance, and if they are measured."""
        count, total, squares = self.answers.get(expert, (0, 0, 0))
        if count < MIN_ANSWERS:
            return self.output_tokens, 0.0, False
        mean, others = total / count, self.requests - count
        variance = (squares / count - mean**2) * (1 + 6 / count) * (others**2 / count + others)  # lengths are skewed
        return total + others * mean, variance, True


class Spend:
    """Sums by the names of each dimension, and what each declared expert would have cost alone."""

    def __init__(self, registry: Registry) -> None:
        self._prices = {spec.name: spec.prices for spec in registry.experts}
        self._total = Amounts()
        self._rows: dict[Dimension, dict[str, Amounts]] = {dimension: {} for dimension in DIMENSIONS}
        self._without_price = [spec.name for spec in registry.experts if not spec.has_known_price]
        self._compared: dict[str, Compared] = {}
        self._compared_dollars = 0.0
        self._failed, self._fallbacks = Counter[str](), Counter[str]()

    def add(self, record: RoutingRecord) -> None:
        """Add the record of one request."""
        if record.outcome not in ("ok", "aborted"):
            self._failed[record.outcome] += 1
        if record.fallback_from in self._prices:
            self._fallbacks[record.fallback_from] += 1
        is_cached, calls = record.cache == "hit", record.measured_calls
        answered = record.first_token_ms is not None or bool(calls)  # without an answer, members may have answered
        called = [call.expert for call in calls] or [record.expert]
        is_known = record.cost is not None and not record.unpriced and not set(called).intersection(self._without_price)
        unpriced = record.unpriced > 0 or (answered and not is_cached and not is_known)
        used = (0, 0) if is_cached else (record.input_tokens or 0, record.output_tokens or 0)
        dollars = 0.0 if is_cached else record.cost
        if dollars is None:
            dollars = sum(map(self._dollars_of, calls))
        self._total.add(dollars, *used, unpriced=unpriced)
        for expert, share, input_tokens, output_tokens in self._shares(record, calls, dollars, used):
            self._row("expert", expert).add(share, input_tokens, output_tokens, unpriced=unpriced)
        self._row("category", record.category).add(dollars, *used, unpriced=unpriced)
        self._row("key", record.key).add(dollars, *used, unpriced=unpriced)
        self._row("tenant", record.tenant).add(dollars, *used, unpriced=unpriced)
        if is_known and not is_cached:
            self._compare(record, calls, dollars)

    def _row(self, dimension: Dimension, name: str | None) -> Amounts:
        rows, name = self._rows[dimension], name or ""
        if name not in rows and len(rows) >= MAX_ROWS - 1:
            name = OTHER
        return rows.setdefault(name, Amounts())

    def _shares(
        self, record: RoutingRecord, calls: Sequence[RecipeCall], dollars: float, used: tuple[int, int]
    ) -> Iterator[tuple[str, float, int, int]]:
        """Yield the expert, dollars and tokens of each part of a request: a recipe's cost is that of its members, in
        proportion to their current prices."""
        if not calls:
            yield record.expert, dollars, *used
            return
        prices = [self._dollars_of(call) for call in calls]
        whole = sum(prices)
        by_expert: dict[str, list[float]] = {}
        for call, one in zip(calls, prices, strict=True):
            sums = by_expert.setdefault(call.expert, [0.0, 0, 0])
            sums[0] += one / whole if whole else 1 / len(calls)
            sums[1] += call.input_tokens or 0
            sums[2] += call.output_tokens or 0
        for expert, (share, input_tokens, output_tokens) in by_expert.items():
            yield expert, dollars * share, int(input_tokens), int(output_tokens)

    def _dollars_of(self, call: RecipeCall) -> float:
        """Return a call's cost at current prices; 0 for an expert that is no longer declared."""
        if (prices := self._prices.get(call.expert)) is None:
            return 0.0
        return prices.cost(call.input_tokens or 0, call.output_tokens or 0, call.cached_tokens or 0)

    def _compare(self, record: RoutingRecord, calls: Sequence[RecipeCall], cost: float) -> None:
        """Add the tokens that each expert is priced by; of a recipe, those of the accepted call."""
        accepted = next((call for call in calls if call.accepted), None)
        source = accepted if record.steps else record
        if source is None or source.input_tokens is None:
            return
        name = record.category if record.category in self._compared or len(self._compared) < MAX_ROWS else OTHER
        tokens = source.input_tokens, source.output_tokens or 0, source.cached_tokens or 0
        self._compared.setdefault(name, Compared()).add(None if calls else record.expert, *tokens)
        self._compared_dollars += cost

    def report(self) -> dict[str, Any]:
        """Return the sums, JSON-able: rows and experts with the most dollars first. No name is an empty one.

        `always` compares on the requests with a known cost and known tokens: `dollars` is what they did cost, `saved`
        an expert's dollars less these. `unknown` names the experts whose price nothing declares. `failed` counts
        requests by outcome, `fallbacks` those that another expert answered by the one that did not.
        """
        always = [self._alone(name) for name in self._prices if name not in self._without_price]
        requests = sum(one.requests for one in self._compared.values())
        return {
            "total": asdict(self._total),
            "rows": {dimension: _sorted(rows) for dimension, rows in self._rows.items()},
            "always": {"requests": requests, "dollars": self._compared_dollars}
            | {"experts": sorted(always, key=lambda one: -one["dollars"]), "unknown": self._without_price},
            "failed": dict(self._failed.most_common()),
            "fallbacks": dict(self._fallbacks.most_common()),
            "note": NOTE,
        }

    def _alone(self, name: str) -> dict[str, Any]:
        """Return what the expert would have cost, with its interval and the share of requests that are measured."""
        prices, dollars, variance, measured = self._prices[name], 0.0, 0.0, 0
        for one in self._compared.values():
            written, uncertain, is_measured = one.written_by(name)
            dollars += prices.cost(one.input_tokens, written, one.cached_tokens)
            variance += uncertain * (prices.output / 1e6) ** 2
            measured += one.requests * is_measured
        half, requests = 1.96 * max(variance, 0.0) ** 0.5, sum(one.requests for one in self._compared.values())
        found = {"dollars": dollars, "low": max(dollars - half, 0.0), "high": dollars + half}
        return {
            "expert": name,
            **found,
            "saved": dollars - self._compared_dollars,
            "measured": measured / max(requests, 1),
        }


def _sorted(rows: Mapping[str, Amounts]) -> list[dict[str, Any]]:
    found = sorted(rows.items(), key=lambda row: (-row[1].dollars, -row[1].requests, row[0]))
    return [{"name": name} | asdict(amounts) for name, amounts in found]
