"""Replay quality data as requests: router posteriors of prompts, and traffic that reveals only the chosen expert's
score."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import routers
from coe.learning.experience import Experience, load_experience
from coe.learning.log_frame import frame_of
from coe.learning.off_policy import greedy_policy
from coe.measuring.quality import Quality, read_quality
from coe.measuring.tables import numbered_prompts
from coe.planning.assignment import Assignment, expected_utility
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable
from coe.planning.solver import solve
from coe.records.record import Feedback, RoutingRecord
from coe.routing.decision import choose, propensities

RATE, LOSS = 0.1, 0.1
TENANTS = 8
POISONER = "t0"
"""The tenant whose feedback is turned round in poisoned runs."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPrompts:
    """The prompts as the router sees them: posteriors (n, m), and every expert's score (n, k)."""

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    posterior: Array
    scores: Array

    def experience(self, rows: NDArray[np.int64], **columns: Any) -> Experience:
        """These prompts as experience without feedback; `columns` replaces some of it."""
        count = len(rows)
        plain = replace(
            Experience.blank(self.categories, self.experts, count),
            posterior=self.posterior[rows].astype(np.float32),
            propensity=np.ones(count, dtype=np.float32),
            time=np.arange(count, dtype=np.float64),
        )
        return replace(plain, **columns)

    def mean(self, rows: NDArray[np.int64], assignment: Assignment) -> float:
        """Mean score of prompts routed by an assignment."""
        return float((greedy_policy(self.experience(rows), assignment) * self.scores[rows]).sum(axis=1).mean())


def scored_prompts_of(data: Quality, work: Path) -> ScoredPrompts:
    """The starter router, trained once, and its posteriors of the prompts."""
    cache = work / f"posteriors-{data.digest[:16]}.npz"
    if not cache.is_file():
        with as_file(files("routers") / "starter" / "prompts.jsonl") as shipped:
            examples = [routers.Example(*pair) for _, *pair in numbered_prompts(shipped)]
        routers.build(examples, out=work / "starter", threads=1)
        router = routers.load(work / "starter")
        posteriors = np.stack([found.probabilities for found in router.predict(data.prompts)])
        np.savez(cache, posterior=posteriors, categories=np.array(router.categories))
    with np.load(cache, allow_pickle=False) as kept:
        names = tuple(map(str, kept["categories"]))
        return ScoredPrompts(names, data.models, kept["posterior"].astype(np.float64), data.scores)


def replayed(description: str | None, *, seeds: int) -> tuple[ScoredPrompts, argparse.Namespace]:
    """The prompts that the options of the command line name, and these options."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name in ("--data", "--json", "--work"):
        parser.add_argument(name, type=Path, required=name == "--data")
    parser.add_argument("--benchmark", default="llmrouter9")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", help="scenarios whose name contains this")
    given = parser.parse_args()
    with TemporaryDirectory() as fresh:
        work = given.work or Path(fresh)
        work.mkdir(parents=True, exist_ok=True)
        return scored_prompts_of(read_quality(given.data, benchmark=given.benchmark), work), given


def flat(scored_prompts: ScoredPrompts) -> Assignment:
    """The plan without any scores: all experts have the same quality, and requests are shared evenly."""
    shape = (len(scored_prompts.categories), len(scored_prompts.experts))
    nothing = np.zeros(shape)
    table = ScoreTable(scored_prompts.categories, scored_prompts.experts, nothing, nothing, nothing)
    even = np.ones(shape[0])
    return solve(Problem.of(table, quality=nothing, weights=even))


class Traffic:
    """Requests as the gateway would log them, and the feedback to each."""

    def __init__(
        self, scored_prompts: ScoredPrompts, order: NDArray[np.int64], *, seed: int, poisoner: float = 0.0
    ) -> None:
        self.scored_prompts, self.order = scored_prompts, order
        self._random = np.random.default_rng((seed, 1))
        share = np.full(TENANTS, (1.0 - poisoner) / (TENANTS - 1)) if poisoner else np.full(TENANTS, 1.0 / TENANTS)
        share[0] = poisoner or share[0]
        self._tenants = self._random.choice(TENANTS, size=len(order), p=share)
        self.records: list[RoutingRecord] = []
        self.feedback: list[Feedback] = []
        self.rewards: list[float] = []
        self.explored = 0

    def serve(self, count: int, assignment: Assignment, *, flipped: bool) -> None:
        """The next `count` requests by an assignment; feedback of the poisoner is turned round where `flipped`."""
        for number in range(len(self.rewards), min(len(self.rewards) + count, len(self.order))):
            row, tenant = self.order[number], f"t{self._tenants[number]}"
            posterior = self.scored_prompts.posterior[row]
            utility, weights = expected_utility(assignment, posterior), assignment.exploration
            weights = None if weights is None else weights[posterior.argmax()]
            chances = propensities(utility, rate=RATE, loss=LOSS, weights=weights).tolist()
            chosen = choose(chances, float(self._random.random()))
            self.explored += utility[chosen] < max(utility)
            reward = float(self.scored_prompts.scores[row, chosen])
            self.rewards.append(reward)
            self.records.append(self._record(number, row, chosen, chances, tenant))
            said = 1.0 - reward if flipped and tenant == POISONER else reward
            self.feedback.append(Feedback(f"f{number}", f"r{number}", float(number), "score", said, tenant=tenant))

    def _record(self, number: int, row: int, chosen: int, chances: list[float], tenant: str) -> RoutingRecord:
        posterior = self.scored_prompts.posterior[row]
        return RoutingRecord(
            request_id=f"r{number}",
            time=float(number),
            category=self.scored_prompts.categories[int(posterior.argmax())],
            confidence=float(posterior.max()),
            expert=self.scored_prompts.experts[chosen],
            reason="routed",
            propensity=chances[chosen],
            propensities=tuple(chances),
            candidates=self.scored_prompts.experts,
            probabilities=dict(zip(self.scored_prompts.categories, posterior.tolist(), strict=True)),
            stage="encoder",
            router="starter",
            config="benchmark",
            digest="",
            outcome="ok",
            attempts=1,
            stream=False,
            routing_ms=0.0,
            first_token_ms=None,
            total_ms=0.0,
            tenant=tenant,
        )

    def experience(self) -> Experience:
        found = load_experience(
            frame_of([self.records], [self.feedback], limit=10_000),
            categories=self.scored_prompts.categories,
            experts=self.scored_prompts.experts,
        )
        return found.experience
