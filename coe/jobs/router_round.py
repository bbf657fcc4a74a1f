"""The learning round of the router: trains it with corrected categories and judges it on held-out prompts.

The choice of corrections and the test are in `coe.learning.retraining.router_round`. A promoted router is trained on
all prompts, the held-out ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from coe.artifacts.kinds import ROUTER
from coe.core import Router
from coe.jobs.progress import progress_bar
from coe.jobs.round import Candidate, Job, ManifestFields
from coe.jobs.training_data import training_pairs
from coe.learning.estimation.experience import NONE, Experience
from coe.learning.evaluation.tables import pairs_digest
from coe.learning.plots import plot_round, plot_training
from coe.learning.retraining.router_round import (
    MIN_NEW_CORRECTIONS,
    Pair,
    RouterTrainingSet,
    corrections,
    judge_router,
    merge_corrections,
    prompt_digest,
    router_markdown,
    router_report,
)
from coe.learning.retraining.state import RoundState

if TYPE_CHECKING:
    from routers.encoders import TaskRunner

BASE, LEARNT = "base", "learnt"
"""Metrics in the manifest of a router: the digest of its labelled base, and those of the corrections in its training
set."""

Build = Callable[[Sequence[Pair], Path], Mapping[str, Any]]
"""Trains on pairs into a folder and returns the metrics."""


@dataclass(frozen=True, slots=True)
class RouterRound:
    """Needs corrected categories in `experience`. The trainings of a round share embeddings in the folder `cache`."""

    experience: Experience
    runner: TaskRunner
    cache: Path
    kind: str = ROUTER

    def judge(self, job: Job) -> Candidate | str | None:
        if not np.any(self.experience.corrected != NONE):
            return None
        data = _training_set(job, self.experience)
        if isinstance(data, str):
            return data
        version, inputs = job.store(ROUTER).in_use(), pairs_digest(data.added)
        tests = job.tests_so_far(ROUTER, in_use=str(version), inputs=inputs)
        if tests is None:
            return "no correction is new"
        build = partial(build_router, encoder=job.registry.router.encoder, cache=self.cache, runner=self.runner)
        judgement = judge_router(data, partial(train_router, build=build), round_=tests + 1)
        report = router_report(data, judgement)
        return Candidate(
            RoundState.of(judgement, in_use=str(version), inputs=inputs, time=job.now),
            replaces=version,
            report=report,
            write_report=partial(_write_report, report=report),
            save=partial(_save, data, build=build, categories=job.registry.category_names),
        )


def _training_set(job: Job, experience: Experience) -> RouterTrainingSet | str:
    """The labelled base and the corrections that may join it, or why there is nothing to learn."""
    base = training_pairs(job.registry, base=job.settings.config.parent, data=None)
    artifact = job.store(ROUTER).current()
    assert artifact is not None
    metrics = artifact.manifest.metrics
    if metrics.get(BASE, artifact.manifest.data) != pairs_digest(base):
        return "the router was trained on other prompts than are declared; name them as router.training_data and train"
    corrected = corrections(job.records(), experience)
    if not corrected:
        return "the log keeps no prompts of the corrected requests; set log.store_prompts"
    data = RouterTrainingSet(tuple(base), merge_corrections(base, corrected), frozenset(metrics.get(LEARNT, ())))
    if data.new < MIN_NEW_CORRECTIONS:
        return f"{data.new} corrections are new, and a round takes {MIN_NEW_CORRECTIONS}"
    return data


def build_router(
    pairs: Sequence[Pair], out: Path, *, encoder: str, cache: Path, runner: TaskRunner
) -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs into the folder `out`. Returns its metrics."""
    import routers

    examples = [routers.Example(prompt, category) for prompt, category in pairs]
    with progress_bar("training") as progress:
        return routers.build(examples, encoder=encoder, out=out, progress=progress, cache=cache, runner=runner)


def train_router(pairs: Sequence[Pair], out: Path, *, build: Build) -> Router:
    """Train a router and load it."""
    import routers

    build(pairs, out)
    return routers.load(out)


def _save(data: RouterTrainingSet, folder: Path, *, build: Build, categories: Sequence[str]) -> ManifestFields:
    pairs = data.corrected.pairs
    metrics = dict(build(pairs, folder))
    metrics |= {BASE: pairs_digest(data.base), LEARNT: [prompt_digest(prompt) for prompt, _ in data.added]}
    plot_training(metrics, folder)
    return {"categories": categories, "data": pairs_digest(pairs), "metrics": metrics}


def _write_report(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (folder / "report.md").write_text(router_markdown(report), encoding="utf-8")
    plot_round(report, folder / "report.svg")
