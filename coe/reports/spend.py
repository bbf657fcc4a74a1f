"""Sums the dollars of the routing log by expert, category, API key and tenant, next to what one expert would have cost.

`Spend` adds records one by one, so its memory does not grow with the log. All requests count, also those of CoE's own
commands, which the rest of `coe report` leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import Registry

Dimension = Literal["expert", "category", "key", "tenant"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
MAX_ROWS = 2_000
"""Rows of a dimension, including OTHER for further names. The log may hold names that are no longer declared."""
OTHER = "(other)"
SAME_TOKENS = (
    "an expert's dollars under `always` are those of the same tokens at its current prices; another model may write "
    "more or less"
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


class Spend:
    """Sums by the names of each dimension, and what each declared expert would have cost alone."""

    def __init__(self, registry: Registry) -> None:
        self._prices = {arm.name: arm.prices for arm in registry.experts}
        self._total = Amounts()
        self._rows: dict[Dimension, dict[str, Amounts]] = {dimension: {} for dimension in DIMENSIONS}
        self._without_price = [spec.name for spec in registry.experts if not spec.has_known_price]
        self._always = {spec.name: 0.0 for spec in registry.experts if spec.has_known_price}
        self._compared, self._compared_dollars = 0, 0.0

    def add(self, record: RoutingRecord) -> None:
        """Add the record of one request."""
        is_cached, calls = record.cache == "hit", _calls(record)
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
        """Add what each expert would have cost for these tokens; of a recipe, for those of the accepted call."""
        accepted = next((call for call in calls if call.accepted), None)
        source = accepted if record.steps else record
        if source is None or source.input_tokens is None:
            return
        self._compared += 1
        self._compared_dollars += cost
        tokens = source.input_tokens, source.output_tokens or 0, source.cached_tokens or 0
        for name in self._always:
            self._always[name] += self._prices[name].cost(*tokens)

    def report(self) -> dict[str, Any]:
        """Return the sums, JSON-able: rows and experts with the most dollars first. No name is an empty one.

        `always` compares on the requests with a known cost and known tokens: `dollars` is what they did cost, `saved`
        an expert's dollars less these. `unknown` names the experts whose price nothing declares.
        """
        experts = [
            {"expert": name, "dollars": dollars, "saved": dollars - self._compared_dollars}
            for name, dollars in sorted(self._always.items(), key=lambda one: -one[1])
        ]
        return {
            "total": asdict(self._total),
            "rows": {dimension: _sorted(rows) for dimension, rows in self._rows.items()},
            "always": {"requests": self._compared, "dollars": self._compared_dollars, "experts": experts}
            | {"unknown": self._without_price},
            "note": SAME_TOKENS,
        }


def _sorted(rows: Mapping[str, Amounts]) -> list[dict[str, Any]]:
    found = sorted(rows.items(), key=lambda row: (-row[1].dollars, -row[1].requests, row[0]))
    return [{"name": name} | asdict(amounts) for name, amounts in found]


def _calls(record: RoutingRecord) -> list[RecipeCall]:
    """Return the calls of recipes with known tokens. If they failed and an expert answered in their place, its call is
    the last one: it used the rest of the record's total."""
    calls = [call for call in record.steps if call.input_tokens is not None]
    if not calls or not record.fallback_from or any(call.accepted for call in record.steps):
        return calls

    def rest(total: int | None, parts: Iterable[int | None]) -> int:
        return max(0, (total or 0) - sum(part or 0 for part in parts))

    return [
        *calls,
        RecipeCall(
            record.expert,
            len(calls),
            "answered",
            rest(record.input_tokens, (call.input_tokens for call in calls)),
            rest(record.output_tokens, (call.output_tokens for call in calls)),
            accepted=True,
            cached_tokens=rest(record.cached_tokens, (call.cached_tokens for call in calls)),
        ),
    ]
