"""Artifacts as training, planning and learning write them, for gateways in the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.artifacts.manifest import ASSIGNMENT, ROUTER
from coe.artifacts.store import ArtifactStore
from coe.planning.assignment import Assignment
from coe.planning.job.basis import declared_problem
from coe.planning.plan import Plan, declared_digests, round_traffic
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import marginal_values, solve
from coe.registry import Registry
from coe.settings import Settings
from routers.cascade import CONFIG
from tests.fakes import registry_of, router_json

CATEGORIES = ("code", "art", "general")
SIZES = {"coder": 7.0, "painter": 30.0, "generalist": 2.0}
SCORES = {"coder": (0.9, 0.3, 0.4), "painter": (0.6, 0.8, 0.7), "generalist": (0.4, 0.4, 0.6)}
"""Mean score by category."""


def measured_registry(**changes: Any) -> Registry:
    """The registry of `tests.fakes` with sizes, and without pinned categories."""
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
        | {"active_parameters_b": size, "prices": {"input": size / 10, "output": size / 5}}
        for name, size in SIZES.items()
    ]
    return registry_of(**{"experts": experts, "assignment": {"general": "generalist"}} | changes)


def settings_in(folder: Path, registry: Registry) -> Settings:
    """With the registry declared there; subprocesses find this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    declared = registry.model_dump(mode="json", exclude_none=True)
    (folder / "experts.yaml").write_bytes(orjson.dumps(declared))
    return Settings.read({}, config=folder / "experts.yaml")


def planned(settings: Settings, registry: Registry, *, seed: int = 0) -> tuple[str, Assignment]:
    """A plan on synthetic scores, published and promoted."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), (80, 40, 12))
    means = np.array([SCORES[name] for name in registry.expert_names]).T[labels]
    scores = (rng.random(means.shape) < means).astype(np.float64)
    table = tabulate_softly(CATEGORIES, registry.expert_names, np.eye(3)[labels], scores)
    weights = table.count.max(axis=1)
    problem = declared_problem(registry, table, quality=table.shrunk(), weights=weights)
    traffic = round_traffic(np.eye(3)[labels] * 0.9 + 0.1 / 3)
    assignment = solve(problem, traffic=traffic)
    plan = Plan(
        assignment,
        problem,
        table,
        "132 prompts of probes",
        table.shrunk(),
        table.error(),
        pins=registry.assignment,
        declared=declared_digests(registry),
        value_of_expert=marginal_values(problem, assignment),
        traffic=traffic,
    )
    store = ArtifactStore(settings.artifacts, ASSIGNMENT)
    with store.draft() as draft:
        plan.save(draft)
        artifact = store.publish(draft, categories=CATEGORIES, data=registry.digest, metrics={})
    store.promote(artifact.manifest.version, by="plan", why="planned on probes")
    return artifact.manifest.version, assignment


def router_published(
    settings: Settings, mark: str, *, categories: tuple[str, ...] = CATEGORIES, metrics: Mapping[str, Any] | None = None
) -> str:
    """A folder that passes the checks before loading, but is no router."""
    store = ArtifactStore(settings.artifacts, ROUTER)
    with store.draft() as draft:
        (draft / CONFIG).write_bytes(router_json(categories, mark=mark))
        artifact = store.publish(draft, categories=categories, data=mark, metrics=metrics or {})
    return artifact.manifest.version


class ScriptedJobs:
    """A fake job runner: returns or raises its result, and records the requested jobs."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, ...]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def run(self, *words: str, seconds: float, needs: tuple[str, ...]) -> Any:
        self.asked.append(words)
        await self.go.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer
