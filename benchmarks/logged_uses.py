"""Compares the uses that a plan predicts with what held-out requests of a routing log are billed.

    .venv/bin/python -m benchmarks.logged_uses [--answers DIR] [--requests 200000] [--seed 0]

The log is generated: heavy-tailed lengths by category and expert, cached prompts, and routing that sends most requests
of a category to one expert. With --answers, the answers' lengths are drawn from the recorded answers of DIR
(answers.parquet and prompts.parquet; four characters a token). Scores come from few and shorter prompts. The first half
of the log is measured, and the other half is billed, by category and expert and as a whole under limits of mean cost
and mean latency.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.learning.logged_uses import BILLED, LoggedUses
from coe.measuring.tables import read_table
from coe.planning import (
    MeasuredUses,
    Problem,
    declared_uses,
    expected_utility,
    round_traffic,
    routed_use,
    solve,
)
from coe.records.record import RoutingRecord
from coe.registry import Registry

Array = NDArray[np.float64]
SIZES = {"tiny": 1.0, "small": 3.0, "medium": 8.0, "large": 30.0, "huge": 70.0}
"""Active parameters in billions by expert."""
MODELS = (
    "phi-2",
    "Phi-3-mini-4k-instruct",
    "mathstral-7B",
    "Mistral-Small-Instruct-2409",
    "Meta-Llama-3_1-70B-Instruct",
)
"""Models whose answers' lengths --answers uses for the experts, smallest first."""
SYNTHETIC_CATEGORIES = ("code", "math", "law", "chat", "essay", "translation", "extraction", "general")
CHARACTERS_PER_TOKEN = 4
TAIL = 1.1
"""Standard deviation of the logarithm of generated lengths: one request in a hundred is 13 times the median."""
PROBE_LENGTH = 0.6
"""Length of a probe's prompt and answer relative to a user's."""
PROBES = 40
"""Scored probes of a category."""
MAIN_SHARE = 0.7
"""Share of a category's requests that go to one expert; the others are spread over all."""
SIGNAL = 3.0
"""Strength of the router's evidence for the true category, in standard deviations of its noise."""
ROUTER = "r1"
COUNTS = (0, 30, 100, 300, 1000, 3000)
"""Lower ends of the reported ranges of a cell's measured requests."""


@dataclass(frozen=True)
class World:
    """The lengths of answers, by category and expert: a list of values to draw from, or the median of a log-normal."""

    registry: Registry
    medians: Array
    recorded: dict[tuple[int, int], Array]

    def tokens(
        self, random: np.random.Generator, category: NDArray[np.int64], expert: int
    ) -> tuple[Array, Array, Array]:
        """Draw input, cached and output tokens of one expert's answers to requests of these categories."""
        given = np.maximum(random.lognormal(np.log(200.0 + 150.0 * category), TAIL), 8).round()
        hit = random.random(len(category)) < 0.1 * (category % 5)
        cached = np.where(hit, (0.8 * given).round(), 0.0)
        written = random.lognormal(np.log(self.medians[category, expert]), TAIL)
        for (row, column), lengths in self.recorded.items():
            if column == expert and len(lengths):
                own = category == row
                written[own] = random.choice(lengths, own.sum())
        return given, cached, np.maximum(written, 1).round()


def world(folder: Path | None, random: np.random.Generator) -> World:
    """Return generated lengths, or those of recorded answers."""
    recorded: dict[tuple[int, int], Array] = {}
    categories: Sequence[str] = SYNTHETIC_CATEGORIES
    if folder is not None:
        recorded, categories = _recorded(folder)
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1", "active_parameters_b": size}
        | {"prices": {"input": 0.05 * size, "output": 0.2 * size, "cached_input": 0.005 * size}}
        for name, size in SIZES.items()
    ]
    registry = Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in categories],
            "experts": experts,
            "assignment": {"general": "small"},
        }
    )
    return World(registry, random.lognormal(np.log(250.0), 0.9, (len(categories), len(SIZES))), recorded)


def _recorded(folder: Path) -> tuple[dict[tuple[int, int], Array], tuple[str, ...]]:
    answers = read_table(folder / "answers.parquet", needed=("prompt_id", "model", "output_chars"))
    prompts = read_table(folder / "prompts.parquet", needed=("prompt_id", "category"))
    category = dict(zip(prompts.columns["prompt_id"], prompts.columns["category"], strict=True))
    found: dict[tuple[str, int], list[float]] = {}
    columns = (answers.columns[name] for name in ("prompt_id", "model", "output_chars"))
    for prompt_id, model, characters in zip(*columns, strict=True):
        if model in MODELS and prompt_id in category:
            found.setdefault((category[prompt_id], MODELS.index(model)), []).append(characters / CHARACTERS_PER_TOKEN)
    names = tuple(dict.fromkeys((*sorted({name for name, _ in found}), "general")))
    return {(names.index(name), column): np.array(lengths) for (name, column), lengths in found.items()}, names


@dataclass(frozen=True)
class Requests:
    """Requests with the answer that each expert would give: arrays of shape (n_requests, n_experts)."""

    category: NDArray[np.int64]
    posterior: Array
    given: Array
    cached: Array
    written: Array

    @classmethod
    def draw(cls, world: World, random: np.random.Generator, total: int) -> Requests:
        count = len(world.registry.categories)
        share = random.dirichlet(np.full(count, 2.0))
        category = random.choice(count, total, p=share)
        signal = random.normal(size=(total, count))
        signal[np.arange(total), category] += SIGNAL
        odds = share * np.exp(SIGNAL * signal - SIGNAL**2 / 2)  # Bayes' rule, so the router is calibrated
        drawn = [world.tokens(random, category, column) for column in range(len(SIZES))]
        tokens = [np.column_stack(part) for part in zip(*drawn, strict=True)]
        return cls(category, odds / odds.sum(axis=1, keepdims=True), *tokens)

    def part(self, rows: slice) -> Requests:
        return Requests(
            self.category[rows], self.posterior[rows], self.given[rows], self.cached[rows], self.written[rows]
        )

    def dollars(self, registry: Registry) -> Array:
        costs = [
            [
                spec.prices.cost(*cell)
                for cell in zip(self.given[:, k], self.written[:, k], self.cached[:, k], strict=True)
            ]
            for k, spec in enumerate(registry.experts)
        ]
        return np.array(costs).T

    @property
    def latency_ms(self) -> Array:
        return np.asarray(100.0 + 0.05 * self.given + self.written * (2.0 + 0.4 * np.array(list(SIZES.values()))))


def records(requests: Requests, registry: Registry, chosen: NDArray[np.int64]) -> list[RoutingRecord]:
    """Return the log of requests whose `chosen` experts answered."""
    dollars, latency = requests.dollars(registry), requests.latency_ms
    return [
        answered(
            number,
            registry,
            category=category,
            expert=column,
            posterior=requests.posterior[number],
            tokens=(requests.given[number, column], requests.cached[number, column], requests.written[number, column]),
            total_ms=latency[number, column],
            cost=dollars[number, column],
        )
        for number, (category, column) in enumerate(zip(requests.category.tolist(), chosen.tolist(), strict=True))
    ]


def answered(
    number: int,
    registry: Registry,
    *,
    category: int,
    expert: int,
    posterior: Array,
    tokens: tuple[float, float, float],
    total_ms: float,
    cost: float,
    stream: bool = True,
) -> RoutingRecord:
    """Return the record of a request that an expert answered. `tokens` are those of the input, those of it that were
    cached, and those of the output."""
    names, (given, cached, written) = registry.category_names, tokens
    return RoutingRecord(
        request_id=f"r{number}",
        time=float(number),
        category=names[category],
        confidence=1.0,
        expert=registry.expert_names[expert],
        reason="routed",
        propensity=1.0,
        candidates=registry.expert_names,
        probabilities=dict(zip(names, posterior.tolist(), strict=True)),
        stage="encoder",
        router=ROUTER,
        config="c1",
        digest="",
        outcome="ok",
        attempts=1,
        stream=stream,
        routing_ms=1.0,
        first_token_ms=100.0 + 0.05 * float(given),
        total_ms=float(total_ms),
        input_tokens=int(given),
        cached_tokens=int(cached),
        output_tokens=int(written),
        cost=float(cost),
    )


def scored_uses(world: World, random: np.random.Generator) -> MeasuredUses:
    """Return the uses that `coe score` measures on probes, which are shorter than users' requests."""
    names = world.registry.category_names
    category = np.repeat(np.arange(len(names)), PROBES)
    drawn = [world.tokens(random, category, column) for column in range(len(SIZES))]
    given, _, written = (PROBE_LENGTH * np.column_stack(part) for part in zip(*drawn, strict=True))
    latency = Requests(category, np.empty(0), given, np.zeros_like(given), written).latency_ms
    answers = {"input_tokens": given, "output_tokens": written, "latency_ms": latency}
    return MeasuredUses.of(names, world.registry.expert_names, np.eye(len(names))[category], answers)


def cells(logged: LoggedUses, billed: LoggedUses, uses: MeasuredUses, registry: Registry) -> list[tuple[int, float]]:
    """Return the measured requests of each cell that was billed as often, and predicted over billed cost."""
    names = registry.expert_names
    cost, table = declared_uses(registry, registry.category_names, measured=uses).cost, billed.table(BILLED, names)
    assert cost is not None
    measured = logged.table(BILLED, names).count
    return [
        (int(measured[cell]), float(cost[cell] / 1000 / table.mean[cell]))
        for cell in np.ndindex(cost.shape)
        if table.count[cell] >= max(measured[cell] / 2, 1)
    ]


def routed(requests: Requests, problem: Problem, mix: Array) -> tuple[NDArray[np.int64], float]:
    """Return the expert of each request by the plan of `problem`, whose prices are fitted to the posteriors `mix`; and
    the use of the limited row that the plan predicts for these posteriors."""
    traffic = round_traffic(mix)
    plan = solve(problem, traffic=traffic)
    chosen = [plan.experts[int(expected_utility(plan, one).argmax())] for one in requests.posterior]
    (predicted,) = routed_use(problem, plan, traffic).values()
    return np.array([problem.experts.index(name) for name in chosen]), predicted


def limit_rows(
    held_out: Requests, registry: Registry, logged: LoggedUses, uses: MeasuredUses, random: np.random.Generator
) -> list[tuple[str, float, float, float]]:
    """Return budget row, limit, use over limit and use over prediction of the held-out requests, routed by the plan of
    each limit."""
    names = registry.category_names
    strength = 0.35 + 0.12 * np.log(np.array(list(SIZES.values())))
    quality = np.clip(strength + random.normal(0, 0.06, (len(names), len(SIZES))), 0, 1)
    mix = logged.traffic.over(names, router=ROUTER)
    assert mix is not None
    weights, sample = mix
    declared = declared_uses(registry, names, measured=uses)
    actual = {"mean_cost": held_out.dollars(registry) * 1000, "mean_latency_ms": held_out.latency_ms}
    share, found = weights / weights.sum(), []
    for row, use in (("mean_cost", declared.cost), ("mean_latency_ms", declared.latency_ms)):
        assert use is not None
        low, high = float(share @ use.min(axis=1)), float(share @ use.max(axis=1))
        for part in (0.1, 0.3, 0.6):
            limit = low + part * (high - low)
            budget = {row: limit}
            problem = Problem(names, registry.expert_names, quality, share, declared, budget)
            chosen, predicted = routed(held_out, problem, sample)
            used = float(actual[row][np.arange(len(chosen)), chosen].mean())
            found.append((row, limit, used / limit, used / predicted))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    model = world(options.answers, random)
    requests = Requests.draw(model, random, options.requests)
    main_expert = random.integers(len(SIZES), size=len(model.registry.categories))
    is_main = random.random(options.requests) < MAIN_SHARE
    chosen = np.where(is_main, main_expert[requests.category], random.integers(len(SIZES), size=options.requests))
    half, names = options.requests // 2, model.registry.category_names
    log = records(requests, model.registry, chosen)
    logged, billed = LoggedUses.of([log[:half]], names), LoggedUses.of([log[half:]], names)
    scored = scored_uses(model, random)
    updated = scored.updated(logged.tables(model.registry.expert_names))
    print(f"{'measured requests':>18} {'cells':>6} {'within 10 %':>12} {'median error':>13} {'scores alone':>13}")
    both = [cells(logged, billed, uses, model.registry) for uses in (updated, scored)]
    for low, high in zip(COUNTS, (*COUNTS[1:], 10**9), strict=True):
        errors = [np.array([abs(ratio - 1) for count, ratio in one if low <= count < high]) for one in both]
        if len(errors[0]):
            within = f"{(errors[0] <= 0.1).sum()}/{len(errors[0])}"
            print(
                f"{f'>= {low}':>18} {len(errors[0]):6} {within:>12} "
                f"{np.median(errors[0]):13.1%} {np.median(errors[1]):13.1%}"
            )
    held_out = requests.part(slice(half, None))
    print(f"\n{'limit':>28} {'use over limit':>15} {'over predicted':>15} {'scores alone':>13}")
    rows = [limit_rows(held_out, model.registry, logged, uses, np.random.default_rng(1)) for uses in (updated, scored)]
    for (row, limit, used, predicted), (_, _, without, _) in zip(*rows, strict=True):
        print(f"{f'{row} {limit:.4g}':>28} {used:15.3f} {predicted:15.3f} {without:13.3f}")


if __name__ == "__main__":
    main()
