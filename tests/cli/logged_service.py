"""A service whose log was filled as a gateway would fill it, for the verbs that learn from it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coe.artifacts.active_state import load_active_state
from coe.artifacts.store import ArtifactStore
from coe.measuring.tables import pairs_digest
from coe.planning.assignment import expected_utility
from coe.records import open_log_and_feedback
from coe.records.record import Feedback, RoutingRecord
from coe.routing.decision import choose, propensities
from coe.settings import Settings
from tests.cli.command import run
from tests.routers.conftest import examples

RATE, LOSS = 0.3, 1.0
TENANTS = ("a", "b", "c", "d")
DECLARED: dict[str, Any] = {
    "version": 1,
    "categories": [
        {"name": "cooking", "description": "food"},
        {"name": "astronomy", "description": "sky"},
        {"name": "football", "description": "sport"},
        {"name": "general", "description": "the rest", "examples": ["hello there", "good morning to you"]},
    ],
    "experts": [
        {"name": name, "model": "good", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
        for name in ("chef", "generalist")
    ],
    "assignment": {"general": "generalist"},
    "policy": {"confidence_threshold": 0, "exploration": {"rate": RATE, "max_quality_loss": LOSS}},
}
PROMPTS = [(one.prompt, one.category) for one in examples(count=60)] + [(f"hello {n}", "general") for n in range(30)]
TRAINING_DIGEST = pairs_digest([*PROMPTS, *((text, "general") for text in DECLARED["categories"][-1]["examples"])])
"""Digest of the router's training prompts, if `router.training_data` holds PROMPTS."""
TRUTH = {"chef": {"cooking": 0.9, "football": 0.9}, "generalist": {"astronomy": 0.9, "general": 0.9}}
"""Probability that an expert's answer is good; .2 for experts and categories that are not listed."""


@dataclass
class LoggedService:
    """A declared service; `serve` logs requests as its gateway would decide them."""

    config: Path
    url: str
    served: int = 0
    began: float = field(default_factory=lambda: time.time() - 5_000)

    @property
    def settings(self) -> Settings:
        return Settings.read({}, config=self.config)

    def store(self, kind: str = "assignment") -> ArtifactStore:
        return ArtifactStore(self.settings.artifacts, kind)

    def declare(self, **changes: Any) -> None:
        self.config.write_text(json.dumps(DECLARED | {"log": {"url": self.url}} | changes))

    def run(self, *words: object) -> str:
        return run(*words, "--config", self.config)

    def report(self, *words: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return found

    def retrain(self, *words: object) -> dict[str, Any]:
        """The outcome of the assignment."""
        found: dict[str, Any] = self.report("retrain", *words)["assignment"]
        return found

    def choices(self) -> dict[str, str]:
        """Return the expert of a clear case of each category, by the artifacts in use."""
        assignment = load_active_state(self.settings).assignment
        best = [int(expected_utility(assignment, row).argmax()) for row in np.eye(len(assignment.categories))]
        return {name: assignment.experts[index] for name, index in zip(assignment.categories, best, strict=True)}

    def serve(self, count: int, *, flipped: Collection[str] = (), **fields: Any) -> None:
        """Requests, each rated; feedback of `flipped` tenants says the opposite. `fields` replaces some of a record."""
        made = list(self._requests(count, flipped, fields))
        self.append([record for record, _ in made], [event for _, event in made])

    def append(self, records: Sequence[RoutingRecord], events: Sequence[Feedback] = ()) -> None:
        async def work() -> None:
            log, feedback = open_log_and_feedback(self.url, base=self.settings.home)
            await log.append(records)
            await feedback.append(events)
            await log.aclose()
            await feedback.aclose()

        asyncio.run(work())

    def _requests(
        self, count: int, flipped: Collection[str], fields: dict[str, Any]
    ) -> Iterator[tuple[RoutingRecord, Feedback]]:
        in_use, random = load_active_state(self.settings), np.random.default_rng(self.served)
        assignment, names = in_use.assignment, in_use.router.categories
        for number in range(self.served, self.served + count):
            category, tenant = int(random.integers(len(names))), TENANTS[int(random.integers(len(TENANTS)))]
            posterior = np.full(len(names), 0.03)
            posterior[category] = 1.0 - 0.03 * (len(names) - 1)
            utility = expected_utility(assignment, posterior)
            weights = assignment.exploration_weights(category, assignment.experts)
            chances = propensities(utility, rate=RATE, loss=LOSS, weights=weights).tolist()
            index = choose(chances, float(random.random()))
            order = [index, *(other for other in range(len(chances)) if other != index)]
            expert, when = assignment.experts[index], self.began + number / 10
            chance = TRUTH[expert].get(names[category], 0.2)
            good = float(random.random() < chance)
            record = RoutingRecord(
                request_id=f"req_{number:032x}",
                time=when,
                category=names[category],
                confidence=float(posterior.max()),
                expert=expert,
                reason="routed" if utility[index] == max(utility) else "explored",
                propensity=chances[index],
                propensities=tuple(chances[place] for place in order),
                candidates=tuple(assignment.experts[place] for place in order),
                probabilities=dict(zip(names, posterior.tolist(), strict=True)),
                stage="predict_fast",
                router=in_use.router.version,
                config=in_use.registry.digest,
                digest="",
                outcome="ok",
                attempts=1,
                stream=False,
                routing_ms=0.1,
                first_token_ms=1.0,
                total_ms=2.0,
                tenant=tenant,
                assignment=assignment.digest[:16],
            )
            score = 1.0 - good if tenant in flipped else good
            for name, value in fields.items():
                object.__setattr__(record, name, value)
            yield record, Feedback(f"e{number}", record.request_id, when, "score", score, tenant=tenant)
        self.served += count
