"""Learning from traffic: quality data replayed as requests of which only the chosen expert's score comes back.

    python -m benchmarks.learning_loop --data DIR [--json FILE] [--work DIR] [--seeds 5]

DIR holds prompts, scores and models as `coe benchmark` reads them. For each seed 30 % of the prompts stay untouched
and 700 become probes, which judge and never teach; the others come as requests of eight tenants in random order. The
starter router is used as shipped, nothing is known of the experts at first, and every 500 requests the functions behind
`coe retrain` refit, plan and judge. --work keeps the trained router and its posteriors for the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.learning_scenarios import following, plan
from benchmarks.quality_replay import LOSS, RATE, ScoredPrompts, Traffic, flat, replayed
from coe.learning.moves import HeldOutProbes
from coe.learning.plan_candidate import CurrentPlan, judge_plan
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve

UNTOUCHED, PROBES, REQUESTS_PER_ROUND = 0.3, 700, 500
POISONER_SHARE = 0.3
"""Share of the traffic that the poisoning tenant has in the runs with one."""
POISON_START_ROUND = 3
"""Rounds before the poisoning begins in the second kind of poisoned run."""


@dataclass(frozen=True, slots=True)
class Run:
    """Mean score on the untouched prompts after each round, mean reward of all requests, rounds that were promoted, and
    the share of requests that explored."""

    curve: tuple[float, ...]
    reward: float
    promoted: tuple[int, ...]
    explored: float

    @property
    def drop(self) -> float:
        """The largest distance of the router in use below the best one promoted before."""
        return float(max(np.maximum.accumulate(self.curve) - self.curve))


# -------------------------------------------------------------------------------------------------------- the loop


def split(scored_prompts: ScoredPrompts, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Untouched prompts, probes, and requests."""
    shuffled = np.random.default_rng(seed).permutation(len(scored_prompts.scores))
    rest, untouched = np.split(shuffled, [round((1 - UNTOUCHED) * len(shuffled))])
    return untouched, rest[:PROBES], rest[PROBES:]


def learn(
    scored_prompts: ScoredPrompts,
    seed: int,
    *,
    poisoner: float = 0.0,
    flip_from: int | None = None,
) -> Run:
    """One seed, as `coe retrain` would go, from nothing known; feedback of the poisoner is flipped from round
    `flip_from` on."""
    untouched, probes, order = split(scored_prompts, seed)
    held = HeldOutProbes(scored_prompts.experience(probes), scored_prompts.scores[probes], ("all",) * len(probes))
    traffic, current = (
        Traffic(scored_prompts, order, seed=seed, poisoner=poisoner),
        CurrentPlan(flat(scored_prompts), RATE, LOSS),
    )
    curve, promoted = [], []
    for number in range(-(-len(order) // REQUESTS_PER_ROUND)):
        flipped = flip_from is not None and number >= flip_from
        traffic.serve(REQUESTS_PER_ROUND, current.assignment, flipped=flipped)
        now = float(len(traffic.rewards))
        found = judge_plan(traffic.experience(), current, now=now, solve_plan=plan, probes=held)
        if found.judgement.reason == "better":
            promoted.append(number)
        current = following(current, found)
        curve.append(scored_prompts.mean(untouched, current.assignment))
    return Run(tuple(curve), float(np.mean(traffic.rewards)), tuple(promoted), traffic.explored / len(traffic.rewards))


def full_feedback(scored_prompts: ScoredPrompts, seed: int) -> Run:
    """The same where every expert's score comes back for every request, and every round is taken."""
    untouched, _, order = split(scored_prompts, seed)
    traffic, assignment, curve = Traffic(scored_prompts, order, seed=seed), flat(scored_prompts), []
    for number in range(-(-len(order) // REQUESTS_PER_ROUND)):
        traffic.serve(REQUESTS_PER_ROUND, assignment, flipped=False)
        seen = order[: (number + 1) * REQUESTS_PER_ROUND]
        table = tabulate_softly(
            scored_prompts.categories,
            scored_prompts.experts,
            scored_prompts.posterior[seen],
            scored_prompts.scores[seen],
        )
        assignment = solve(Problem.of(table, quality=table.shrunk()))
        curve.append(scored_prompts.mean(untouched, assignment))
    return Run(tuple(curve), float(np.mean(traffic.rewards)), tuple(range(len(curve))), 0.0)


# ------------------------------------------------------------------------------------------------------- the report


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    final = [run.curve[-1] for run in runs]
    return {
        "final_mean": float(np.mean(final)),
        "mean_reward": float(np.mean([run.reward for run in runs])),
        "curve": np.mean([run.curve for run in runs], axis=0).tolist(),
        "promotions": float(np.mean([len(run.promoted) for run in runs])),
        "explored": float(np.mean([run.explored for run in runs])),
        "by_seed": final,
    }


def report(scored_prompts: ScoredPrompts, seeds: int) -> dict[str, Any]:
    def runs(run: Callable[[int], Run]) -> list[Run]:
        return [run(seed) for seed in range(seeds)]

    first = runs(lambda seed: learn(scored_prompts, seed, poisoner=POISONER_SHARE, flip_from=0))
    late = runs(lambda seed: learn(scored_prompts, seed, poisoner=POISONER_SHARE, flip_from=POISON_START_ROUND))
    return {
        "learning": summary(runs(lambda seed: learn(scored_prompts, seed))),
        "oracle_feedback": summary(runs(lambda seed: full_feedback(scored_prompts, seed))),
        "poisoned": {
            "worst_drop": max(run.drop for run in (*first, *late)),
            "from_the_start": summary(first),
            "from_the_middle": summary(late),
        },
    }


def main() -> None:
    scored_prompts, given = replayed(__doc__, seeds=5)
    text = orjson.dumps(report(scored_prompts, given.seeds), option=orjson.OPT_INDENT_2)
    if given.json:
        given.json.write_bytes(text)
    print(text.decode())


if __name__ == "__main__":
    main()
