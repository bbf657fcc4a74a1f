"""Compares the cost and latency that a plan predicts for the arms of recipes with what later requests are billed.

    .venv/bin/python -m benchmarks.recipe_uses DIR [--requests 160000] [--seed 0] [--merged] [--declared]
        [--logged 1000]

DIR is a folder of quality data with recorded answers (MMLU-Pro). Recipes are fitted on one half of the prompts, the
probes. Requests are drawn from the other half, half of them streams, with answers that are longer than those to the
probes. Half of the requests are a log of single experts, which `coe plan` measures. The other half is billed by replay
of each arm's policy with the router's posteriors: by category and arm, and as a whole under limits of mean cost and
mean latency. With --logged, that plan serves further requests first, so many of each category and arm. The arms of the
next plan, which measures these too, are billed instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.logged_uses import answered
from coe.experts.recipes.policy import RecipePolicy
from coe.experts.recipes.policy_file import ArmPolicies
from coe.learning.estimation.logged_uses import LoggedUses
from coe.learning.evaluation.quality import Quality, read_quality
from coe.learning.evaluation.recorded_answers import RecordedAnswers, read_answers
from coe.learning.recipes.answers import Answers
from coe.learning.recipes.columns import RecipeColumns, fitted_columns
from coe.learning.recipes.fit import ReplayedAnswers, replayed
from coe.learning.recipes.logged_arms import LoggedArms, PastArms
from coe.learning.recipes.replay import of_calls
from coe.learning.recipes.traffic import TrafficLengths
from coe.mapping import MeasuredUses, Problem, declared_uses, expected_utility, round_traffic, routed_use, solve
from coe.mapping.score_table import ScoreTable, fit_pseudo_count, tabulate_softly
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import Registry

Array = NDArray[np.float64]
MODELS = {
    "phi": ("Phi-3-mini-4k-instruct", 3.8),
    "mathstral": ("mathstral-7B", 7.2),
    "llama": ("Meta-Llama-3_1-8B-Instruct", 8.0),
    "mixtral": ("Mixtral-8x7B-Instruct-v0.1", 12.9),
    "qwen": ("Qwen1.5-72B-Chat", 72.3),
    "large": ("Meta-Llama-3_1-70B-Instruct", 70.6),
}
"""Model and active parameters in billions of each expert."""
RECIPES = (
    {"name": "two", "cascade": ["phi", "large"]},
    {"name": "pair", "cascade": [["phi", "mathstral"], "large"]},
    {"name": "capped", "cascade": ["mathstral", "large"], "max_tokens": {"mathstral": 300, "large": 400}},
    {"name": "three", "cascade": [["phi", "llama"], "mixtral", "qwen"], "max_tokens": {"llama": 250, "qwen": 300}},
    {"name": "panel", "vote": ["phi", "mathstral", "llama"]},
    {"name": "agreed", "vote": ["phi", "mathstral", "llama", "large"], "ask": "until_agreed"},
    "auto",
)
CHARACTERS_PER_TOKEN = 4
TRAFFIC_LENGTH, SPREAD = 1.5, 0.25
"""Length of users' prompts and answers relative to the probes', and the standard deviation of its logarithm by category
and expert."""
GROUPS = {
    "natural_science": ("physics", "chemistry", "math", "engineering", "computer_science"),
    "life_science": ("biology", "health", "psychology"),
    "society": ("business", "economics", "law", "history", "philosophy"),
}
"""Categories that --merged makes one, so that a category has hundreds of probes."""
SIGNAL = 3.0
"""Strength of the router's evidence for the true category, in standard deviations of its noise."""
STREAMED = 0.5
PLAN = "p1"
"""Version of the plan whose arms answer logged requests."""
SAMPLED = 10_000
"""Posteriors of the log that prices are fitted on."""
COUNTS = (0, 60, 150, 300)
"""Lower ends of the reported ranges of a category's probes."""


@dataclass(frozen=True)
class Pool:
    """Recorded answers of the experts: arrays of shape (n_prompts, n_experts)."""

    data: Quality
    recorded: RecordedAnswers
    registry: Registry

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([self.registry.category_names.index(name) for name in self.data.categories])


def read_pool(folder: Path, *, merged: bool, auto: bool) -> Pool:
    found = read_quality(folder, benchmark="mmlupro", only=[model for model, _ in MODELS.values()])
    recorded = read_answers(folder, found)
    if recorded is None:
        raise SystemExit(f"{folder}: no table of answers")
    columns = [found.models.index(model) for model, _ in MODELS.values()]
    tokens, present = recorded.tokens[:, columns], recorded.recorded[:, columns]
    given = np.array([[len(prompt) / CHARACTERS_PER_TOKEN] * len(MODELS) for prompt in found.prompts]).round()
    categories = tuple("general" if name == "other" else name.replace(" ", "_") for name in found.categories)
    if merged:
        group = {name: one for one, names in GROUPS.items() for name in names}
        categories = tuple(group.get(name, name) for name in categories)
    data = replace(
        found,
        models=tuple(MODELS),
        categories=categories,
        scores=found.scores[:, columns],
        active_b=found.active_b[columns],
        uses={"input_tokens": given, "output_tokens": tokens, "latency_ms": latency_ms(given, tokens)},
    )
    answers = RecordedAnswers(recorded.classes[:, columns], tokens, present, counted=np.ones_like(present))
    return Pool(data, answers, _registry(sorted(set(categories)), RECIPES if auto else RECIPES[:-1]))


def _registry(categories: Sequence[str], recipes: Sequence[Any]) -> Registry:
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1", "active_parameters_b": size}
        | {"prices": {"input": 0.05 * size, "output": 0.2 * size, "cached_input": 0.005 * size}}
        for name, (_, size) in MODELS.items()
    ]
    return Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in categories],
            "experts": experts,
            "recipes": list(recipes),
            "assignment": {"general": "phi"},
        }
    )


def latency_ms(given: Array, written: Array) -> Array:
    sizes = np.array([size for _, size in MODELS.values()])
    return np.asarray(100.0 + 0.05 * given + written * (2.0 + 0.4 * sizes))


@dataclass(frozen=True)
class Requests:
    """Requests with the answer that each expert would give: arrays of shape (n_requests, n_experts)."""

    answers: Answers
    posterior: Array
    streams: NDArray[np.bool_]
    given: Array
    cached: Array

    @classmethod
    def draw(
        cls, pool: Pool, prompts: NDArray[np.int64], longer: Sequence[Array], random: np.random.Generator, total: int
    ) -> Requests:
        """Draw requests of all categories alike from some prompts.

        `longer` are the lengths of their prompts and answers over those of probes, both (n_categories, n_experts).
        """
        names = pool.registry.category_names
        category = random.integers(len(names), size=total)
        chosen = np.empty(total, dtype=np.int64)
        for row in range(len(names)):
            own = category == row
            chosen[own] = random.choice(prompts[pool.labels[prompts] == row], own.sum())
        given = (pool.data.uses["input_tokens"][chosen] * longer[0][category, :1]).round()
        written = np.maximum((pool.recorded.tokens[chosen] * longer[1][category]).round(), 1.0)
        hit = random.random((total, 1)) < 0.1 * (category % 5)[:, None]
        cached = np.where(hit, (0.8 * given).round(), 0.0)
        signal = random.normal(size=(total, len(names)))
        signal[np.arange(total), category] += SIGNAL
        odds = np.exp(SIGNAL * signal)  # Bayes' rule, so the router is calibrated
        answers = Answers(
            tuple(MODELS),
            pool.recorded.classes[chosen],
            pool.data.scores[chosen],
            dollars(pool.registry, given, cached, written),
            written,
            category,
            len(names),
            dollars(pool.registry, np.zeros_like(given), np.zeros_like(given), written),
        )
        streams = random.random(total) < STREAMED
        return cls(answers, odds / odds.sum(axis=1, keepdims=True), streams, given, cached)

    def part(self, rows: NDArray[np.int64]) -> Requests:
        return Requests(
            self.answers.rows(rows), self.posterior[rows], self.streams[rows], self.given[rows], self.cached[rows]
        )

    @property
    def latency_ms(self) -> Array:
        return latency_ms(self.given, self.answers.tokens)

    def answered(self, policy: RecipePolicy) -> ReplayedAnswers:
        """Return the outcome of each request if an arm answers it."""
        scores, called = np.empty(len(self.streams)), np.empty(self.answers.scores.shape, dtype=bool)
        written = np.empty(called.shape)
        for streams in (False, True):
            rows = np.flatnonzero(self.streams == streams)
            part = self.part(rows)
            found = replayed(policy, part.answers, part.posterior, streams=streams)
            scores[rows], called[rows], written[rows] = found.scores, found.called, found.written
        return ReplayedAnswers(scores, called, written)

    def took_ms(self, policy: RecipePolicy, found: ReplayedAnswers) -> tuple[Array, Array]:
        """Return the milliseconds of each call (n_requests, n_experts) and of each request (n_requests,)."""
        columns, sizes = [list(MODELS).index(name) for name in policy.members], [len(s.members) for s in policy.steps]
        each = latency_ms(self.given, self.answers.tokens * found.written) * found.called
        return each, of_calls(sizes, each[:, columns], "latency_ms")

    def billed(self, policy: RecipePolicy) -> tuple[Array, Array]:
        """Return the dollars and the milliseconds of each request if an arm answers it, both (n_requests,)."""
        found = self.answered(policy)
        return found.costs(self.answers), self.took_ms(policy, found)[1]


def dollars(registry: Registry, given: Array, cached: Array, written: Array) -> Array:
    """Return the US dollars of each answer."""
    prices = np.array([(one.prices.input, one.prices.cached, one.prices.output) for one in registry.experts]).T
    return np.asarray(((given - cached) * prices[0] + cached * prices[1] + written * prices[2]) / 1e6)


def records(requests: Requests, registry: Registry, chosen: NDArray[np.int64]) -> list[RoutingRecord]:
    """Return the log of requests that the `chosen` experts answered."""
    latency, answers = requests.latency_ms, requests.answers
    return [
        answered(
            number,
            registry,
            category=category,
            expert=column,
            posterior=requests.posterior[number],
            tokens=(requests.given[number, column], requests.cached[number, column], answers.tokens[number, column]),
            total_ms=latency[number, column],
            cost=answers.costs[number, column],
            stream=bool(requests.streams[number]),
        )
        for number, (category, column) in enumerate(zip(answers.labels.tolist(), chosen.tolist(), strict=True))
    ]


def arm_records(
    requests: Requests, registry: Registry, arms: RecipeColumns, chosen: NDArray[np.int64]
) -> list[RoutingRecord]:
    """Return the log of requests that the `chosen` arms of the plan PLAN answered."""
    found = []
    for number, (name, policy) in enumerate(arms.policies.items()):
        part = requests.part(np.flatnonzero(chosen == number))
        replay = part.answered(policy)
        each, total = part.took_ms(policy, replay)
        steps = [(member, step) for step, one in enumerate(policy.steps) for member in one.members]
        written = (part.answers.tokens * replay.written).round().astype(int)
        base = records(part, registry, np.zeros(len(part.streams), dtype=np.int64))
        for row, record in enumerate(base):
            calls = tuple(
                RecipeCall(
                    member,
                    step,
                    "cut_off" if replay.written[row, column] < 1 else "answered",
                    int(part.given[row, column]),
                    int(written[row, column]),
                    float(each[row, column]),
                    cached_tokens=int(part.cached[row, 0]),
                    max_tokens=policy.max_tokens.get(member),
                )
                for member, step in steps
                if replay.called[row, column := list(MODELS).index(member)]
            )
            found.append(
                replace(record, expert=name, plan=PLAN, recipe=policy.recipe, steps=calls, total_ms=float(total[row]))
            )
    return found


def columns_of(
    pool: Pool, probes: NDArray[np.int64], uses: MeasuredUses, streamed: float, past: Sequence[PastArms] = ()
) -> RecipeColumns:
    """Return the arms that `coe plan` fits on the probes for requests with these uses."""
    names, rows, experts = pool.registry.category_names, probes.tolist(), tuple(MODELS)
    lengths = TrafficLengths.of(uses, pool.data, pool.recorded, rows=rows, experts=experts, categories=names)
    data, recorded = lengths.of_requests(pool.data, pool.recorded)
    return fitted_columns(
        pool.registry,
        data,
        recorded,
        rows=rows,
        experts=experts,
        categories=names,
        streamed=streamed,
        expected=declared_uses(pool.registry, names, experts, measured=uses),
        past=past,
    )


@dataclass(frozen=True)
class Bill:
    """Cost of each request in each column, shape (n_requests, n_columns): the experts, and behind them the arms."""

    dollars: Array
    latency_ms: Array

    @classmethod
    def of(cls, requests: Requests, arms: RecipeColumns) -> Bill:
        each = [requests.billed(policy) for policy in arms.policies.values()]
        cost, took = (np.column_stack(part) for part in zip(*each, strict=True))
        return cls(np.hstack((requests.answers.costs, cost)), np.hstack((requests.latency_ms, took)))


def print_cells(predicted: Array, billed: Array, requests: Requests, probes: NDArray[np.int64], what: str) -> None:
    """Print how many cells of the arms, (n_categories, n_arms) predicted and (n_requests, n_arms) billed, are within 10
    %, by the probes of their category.

    Two standard errors are beside them, relative and the median over cells: that of the bill, and that of the mean of
    as many requests as the category has probes.
    """
    labels, count = requests.answers.labels, requests.answers.n_categories
    size = np.bincount(labels, minlength=count)[:, None]
    mean, squares = (
        np.column_stack([np.bincount(labels, column, count) for column in values.T]) / size
        for values in (billed, billed**2)
    )
    errors, spread = np.abs(predicted / mean - 1), np.sqrt(np.maximum(squares - mean**2, 0.0)) / mean
    print(f"\n{what:>24} {'cells':>6} {'within 10 %':>12} {'median error':>13} {'of bill':>8} {'of probes':>10}")
    for low, high in zip(COUNTS, (*COUNTS[1:], 10**9), strict=True):
        rows = (probes >= low) & (probes < high)
        one, noise = errors[rows].ravel(), spread[rows]
        if len(one):
            within = f"{(one <= 0.1).sum()}/{len(one)}"
            bill, sample = (
                np.median(noise / np.sqrt(size[rows])),
                np.median(noise / np.sqrt(np.maximum(probes[rows], 1))[:, None]),
            )
            print(
                f"{f'{low} probes and more':>24} {len(one):6} {within:>12} {np.median(one):13.1%} {bill:8.1%} "
                f"{sample:10.1%}"
            )
    total = np.abs(predicted.mean(axis=0) / billed.mean(axis=0) - 1)
    print(
        f"{'all categories':>24} {len(total):6} {f'{(total <= 0.1).sum()}/{len(total)}':>12} {np.median(total):13.1%}"
    )


def problem_of(pool: Pool, probes: NDArray[np.int64], arms: RecipeColumns, uses: MeasuredUses) -> Problem:
    """Return the problem of `coe plan` over experts and arms, without a budget; all categories are alike."""
    names, experts = pool.registry.category_names, tuple(MODELS)
    member = np.eye(len(names))[pool.labels[probes]]
    table: ScoreTable = tabulate_softly(names, experts, member, pool.data.scores[probes])
    pseudo_count = fit_pseudo_count([names[label] for label in pool.labels[probes]], pool.data.scores[probes])
    quality = np.hstack((table.shrunk(pseudo_count=pseudo_count), arms.quality))
    declared = declared_uses(pool.registry, names, experts, measured=uses).joined(arms.uses, len(arms.arms))
    weights = np.full(len(names), 1 / len(names))
    return Problem(names, (*experts, *arms.arms), quality, weights, declared, members=arms.members)


def print_limits(problem: Problem, bill: Bill, log: Requests, held_out: Requests) -> None:
    """Print the use of the held-out requests over each limit, if they are routed by its plan."""
    traffic = round_traffic(log.posterior[:SAMPLED])
    print(f"\n{'limit':>28} {'use over limit':>15} {'over predicted':>15} {'of arms':>8}")
    for row, billed in (("mean_cost", bill.dollars * 1000), ("mean_latency_ms", bill.latency_ms)):
        use = problem.use(row)
        low = float(problem.weights @ use.min(axis=1))
        high = float(problem.weights @ use[np.arange(len(use)), problem.quality.argmax(axis=1)])
        for part in (0.1, 0.3, 0.6):
            limit = low + part * (high - low)
            limited = problem.within(**{row: limit})
            plan = solve(limited, traffic=traffic)
            (predicted,) = routed_use(limited, plan, traffic).values()
            chosen = np.array([int(expected_utility(plan, one).argmax()) for one in held_out.posterior])
            used = float(billed[np.arange(len(chosen)), chosen].mean())
            arms = float((chosen >= len(MODELS)).mean())
            print(f"{f'{row} {limit:.4g}':>28} {used / limit:15.3f} {used / predicted:15.3f} {arms:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=160_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merged", action="store_true", help="four wide categories with hundreds of probes each")
    parser.add_argument("--declared", action="store_true", help="no proposed recipes")
    parser.add_argument("--logged", type=int, default=0, help="logged requests of each category and arm")
    options = parser.parse_args()
    pool = read_pool(options.folder, merged=options.merged, auto=not options.declared)
    random = np.random.default_rng(options.seed)
    probes, users = np.split(random.permutation(len(pool.data.prompts)), 2)
    names, experts, half = pool.registry.category_names, tuple(MODELS), options.requests // 2
    longer = [random.lognormal(np.log(TRAFFIC_LENGTH), SPREAD, (len(names), len(MODELS))) for _ in range(2)]
    requests = Requests.draw(pool, users, longer, random, options.requests)
    log, held_out = (requests.part(rows) for rows in np.split(np.arange(options.requests), [half]))
    found = records(log, pool.registry, random.integers(len(MODELS), size=half))
    member = np.eye(len(names))[pool.labels[probes]]
    scored = MeasuredUses.of(names, experts, member, {name: one[probes] for name, one in pool.data.uses.items()})

    def planned(found: list[RoutingRecord], past: Sequence[PastArms] = ()) -> tuple[RecipeColumns, MeasuredUses]:
        logged = LoggedUses.of([found], names)
        uses = scored.updated(logged.tables(experts))
        assert logged.streamed is not None
        return columns_of(pool, probes, uses, logged.streamed, past), uses

    arms, uses = planned(found)
    if options.logged:
        further = Requests.draw(pool, users, longer, random, len(names) * len(arms.arms) * options.logged)
        served = arm_records(further, pool.registry, arms, random.integers(len(arms.arms), size=len(further.streams)))
        sums = LoggedArms(pool.registry)
        for record in served:
            sums.add(record)
        past = PastArms(PLAN, ArmPolicies(names, arms.policies, streamed=STREAMED), sums)
        arms, uses = planned([*found, *served], [past])
    bill = Bill.of(held_out, arms)
    count = np.bincount(pool.labels[probes], minlength=len(names))
    print(f"{len(arms.arms)} arms, {len(held_out.streams) / len(names):.0f} billed requests of each category")
    print_cells(arms.uses.cost / 1000, bill.dollars[:, len(MODELS) :], held_out, count, "cost")
    print_cells(arms.uses.latency_ms, bill.latency_ms[:, len(MODELS) :], held_out, count, "latency")
    print_limits(problem_of(pool, probes, arms, uses), bill, log, held_out)


if __name__ == "__main__":
    main()
