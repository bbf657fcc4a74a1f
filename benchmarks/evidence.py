"""Intervals at every look, on logged and paired answers, and values of decisions, against a known truth.

    python -m benchmarks.evidence DIR [--benchmark mmlupro] [--streams 1000]

DIR holds prompts, scores and models as `coe benchmark` reads them. Prompts are drawn with replacement, so that every
mean is known. `paired`: all experts answer the same prompt. `logged`: one answers, chosen with a probability of .05 to
.5 that differs by request. In each stream one expert is compared with one or with three others, which is looked at
after every request. The first other expert differs by about .02: "to settle" is the number of requests after which 80 %
of the streams have excluded 0, divided by those of a two-sided test of fixed size with one look and a power of 80 %.
`decisions` values a random router on logs of 4,000 requests of another one that explores a fifth of them.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from coe.learning.decisions import compare_decisions
from coe.learning.experience import Experience
from coe.learning.off_policy import greedy_policy
from coe.measuring.quality import Quality, read_quality
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve
from coe.routing.decision import propensities
from coe.trials.evidence import WORTH, confidence_sequence, weighted_differences

Array = NDArray[np.float64]
ERROR, POWER, HORIZON = 0.05, 0.8, 2.2
"""Error of intervals and tests, power of the test, and requests of a stream as a multiple of the test's."""
SHARES = 0.05, 0.5
"""Smallest and largest probability of the new expert in a log."""
BATCH = 10
"""Streams of the same experts, computed at once."""


def streams(scores: Array, others: int, *, logged: bool, random: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return which streams covered the truth at every look, by the confidence sequence and by normal intervals from the
    100th request on, and the requests that excluded 0 for the first other expert, divided by those of the test; all
    (BATCH,)."""
    mean = scores.mean(axis=0)
    new, other = random.permutation(np.argwhere(np.abs(mean[:, None] - mean - WORTH) < WORTH / 8))[0]
    rest = random.permutation(np.setdiff1d(np.arange(scores.shape[1]), [new, other]))[: others - 1]
    pool = scores[:, [new, other, *rest]]
    truth = pool[:, 0].mean() - pool[:, 1:].mean(axis=0)
    variance = (pool[:, 0] - pool[:, 1]).var()
    if logged:  # of a weighted difference whose rewards are centred by their means
        share = np.linspace(*SHARES, 1000)
        variance = pool[:, 0].var() * (1 / share).mean() + pool[:, 1].var() * (others / (1 - share)).mean()
    normal = norm.ppf(1 - ERROR / others / 2)
    needed = variance * ((normal + norm.ppf(POWER)) / truth[0]) ** 2
    count = int(HORIZON * needed)
    rows, least, most = random.integers(len(pool), size=(count, BATCH)), np.full(1, -1.0), np.full(1, 1.0)
    found = pool[rows][..., :1] - pool[rows][..., 1:]
    if logged:
        share = random.uniform(*SHARES, rows.shape)
        chosen = np.where(random.random(rows.shape) < share, 0, random.integers(1, others + 1, rows.shape))
        chances = np.stack((share, *[(1 - share) / others] * others), axis=-1)
        contrasts = np.eye(others + 1)[0] - np.eye(others + 1)[1:]
        each = [
            [weighted_differences(own, pool[drawn, own], chance, one) for one in contrasts]
            for own, drawn, chance in zip(chosen.T, rows.T, chances.swapaxes(0, 1), strict=True)
        ]
        found, least, most = np.array(each).transpose(2, 3, 0, 1)
    low, high = confidence_sequence(found, least, most, error=ERROR)
    seen = np.arange(1, count + 1)[:, None, None]
    average = np.cumsum(found, axis=0) / seen
    half = normal * np.sqrt(np.maximum(np.cumsum(found**2, axis=0) / seen - average**2, 0.0) / seen)
    covered = ((low <= truth) & (truth <= high)).all(axis=(0, 2))
    excluded = (low[..., 0] > 0) | (high[..., 0] < 0)
    settled = np.where(excluded.any(axis=0), excluded.argmax(axis=0) + 1.0, np.inf)
    return covered, (np.abs(average - truth) <= half)[100:].all(axis=(0, 2)), settled / needed


def decisions(data: Quality, random: np.random.Generator) -> tuple[bool, float]:
    """Return if all intervals of a log hold, and the share of pairs .05 apart whose values are in the right order."""
    names, (count, experts) = sorted(set(data.categories)), data.scores.shape
    member = np.eye(len(names))[data.labels(range(count), names)]
    table = tabulate_softly(names, data.models, member, data.scores)
    served, other = (table.shrunk() + random.normal(0, spread, table.count.shape) for spread in (0.05, 0.15))
    plan, decided = solve(Problem.of(table, quality=served)), (member @ other).argmax(axis=1)
    rows = random.integers(count, size=4000)
    chances = propensities(member[rows] @ served, rate=0.2, loss=1.0)
    chosen = np.minimum((random.random((4000, 1)) > chances.cumsum(axis=1)).sum(axis=1), experts - 1)
    whole = replace(Experience.blank(names, data.models, count), posterior=member.astype(np.float32))
    found = {"propensity": chances[np.arange(4000), chosen], "reward": data.scores[rows, chosen]}
    rated = replace(whole.part(rows), chosen=chosen, propensities=chances, kind=np.zeros(4000, np.int8), **found)
    values = compare_decisions(rated, decided[rows], plan)
    policies = [np.eye(experts)[decided], greedy_policy(whole, plan), np.full(data.scores.shape, 1 / experts)]
    truth = np.array([*((policy * data.scores).sum(axis=1).mean() for policy in policies), *data.scores.mean(axis=0)])
    shown = zip([*values, *(one["gain"] for one in values)], [*truth, *(truth[0] - truth)], strict=True)
    held = all(one["low"] - 1e-9 <= true <= one["high"] + 1e-9 for one, true in shown)
    pairs = np.triu_indices(len(truth), 1)
    true, value = (np.subtract(*of[np.array(pairs)]) for of in (truth, np.array([one["value"] for one in values])))
    return held, float((true * value > 0)[abs(true) > 0.05].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--benchmark", default="mmlupro")
    parser.add_argument("--streams", type=int, default=1000)
    options = parser.parse_args()
    data = read_quality(options.folder, benchmark=options.benchmark)
    print(
        f"{'streams':16} covered at every look   normal intervals   requests to settle .02: mean   80 % of the streams"
    )
    for logged, others in itertools.product((False, True), (1, 3)):
        random = np.random.default_rng(others)
        runs = [streams(data.scores, others, logged=logged, random=random) for _ in range(options.streams // BATCH)]
        covered, normal, ratio = (np.concatenate(parts) for parts in zip(*runs, strict=True))
        name = f"{'logged' if logged else 'paired'}, {others} other{'s' * (others > 1)}"
        mean, most = np.minimum(ratio, HORIZON).mean(), np.quantile(ratio, POWER, method="lower")
        print(f"{name:16} {covered.mean():21.1%}   {normal.mean():16.1%}   {mean:28.2f}   {most:15.2f}", flush=True)
    random = np.random.default_rng(0)
    held, order = zip(*(decisions(data, random) for _ in range(options.streams // 20)), strict=True)
    print(f"decisions: all intervals hold in {np.mean(held):.1%} of the logs; order right {np.mean(order):.1%}")


if __name__ == "__main__":
    main()
