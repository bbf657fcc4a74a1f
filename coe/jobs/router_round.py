"""One round of learning for the router: corrected categories in; trained anew, judged, and promoted or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from coe.core import Router
from coe.jobs.plan_round import NOTHING_TO_LEARN, REPORTS, Job, Outcome
from coe.jobs.progress import progress_bar
from coe.jobs.training_data import training_pairs
from coe.learning.estimation.experience import NONE, Experience
from coe.learning.evaluation.tables import pairs_digest
from coe.learning.plots import plot_round, plot_training
from coe.learning.retraining.promotion import Judgement
from coe.learning.retraining.report import keep_report
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
from coe.learning.retraining.state import RoundState, read_round_states, write_round_state

if TYPE_CHECKING:
    from routers.task_runner import TaskRunner

ROUTER = "router"
BASE, LEARNT = "base", "learnt"
"""What the manifest's metrics of a router remember of its training: the digest of the labelled base, and those of the
corrections that joined it."""

Build = Callable[[Sequence[Pair], Path], Mapping[str, Any]]
"""Trains on pairs into a folder and returns the metrics."""


def learn_router(job: Job, experience: Experience, *, work: TaskRunner) -> Outcome | None:
    """A round; None where nobody corrected a category."""
    if not np.any(experience.corrected != NONE):
        return None
    schooling = _schooling(job, experience)
    if isinstance(schooling, str):
        return Outcome(ROUTER, False, f"{NOTHING_TO_LEARN}: {schooling}")
    began, inputs = job.store(ROUTER).in_use(), pairs_digest(schooling.added)
    last = read_round_states(job.settings.artifacts).get(ROUTER)
    same = last is not None and last.in_use == began
    if last and same and last.inputs == inputs:
        return Outcome(ROUTER, False, f"{NOTHING_TO_LEARN}: no correction is new")
    with _building(job.registry.router.encoder, work) as build:
        judgement = judge_router(schooling, _loading(build), round_=1 + (last.judged if last and same else 0))
        rounds = RoundState(
            str(began), judgement.round_, inputs, "", job.now, judgement.promote, judgement.sentence, ""
        )
        return _concluded(job, schooling, judgement, rounds, build)


def _schooling(job: Job, experience: Experience) -> RouterTrainingSet | str:
    """What there is to learn, or why there is nothing."""
    base = training_pairs(job.registry, base=job.settings.config.parent, data=None)
    artifact = job.store(ROUTER).current()
    assert artifact is not None
    metrics = artifact.manifest.metrics
    if metrics.get(BASE, artifact.manifest.data) != pairs_digest(base):
        return "the router was trained on other prompts than are declared; name them as router.training_data and train"
    said = corrections(job.logs.records(since=job.since, deadline=job.now), experience)
    if not said:
        return "the log keeps no prompts of the corrected requests; set log.store_prompts"
    schooling = RouterTrainingSet(tuple(base), merge_corrections(base, said), frozenset(metrics.get(LEARNT, ())))
    if schooling.new < MIN_NEW_CORRECTIONS:
        return f"{schooling.new} corrections are new, and a round takes {MIN_NEW_CORRECTIONS}"
    return schooling


@contextmanager
def _building(encoder: str, work: TaskRunner) -> Iterator[Build]:
    """Trainings that share the vectors of their texts until the block ends."""
    import routers

    with TemporaryDirectory(prefix="coe-vectors-") as cache, progress_bar("training") as progress:

        def build(pairs: Sequence[Pair], out: Path) -> Mapping[str, Any]:
            examples = [routers.Example(prompt, category) for prompt, category in pairs]
            return routers.build(examples, encoder=encoder, out=out, progress=progress, cache=Path(cache), runner=work)

        yield build


def _loading(build: Build) -> Callable[[Sequence[Pair], Path], Router]:
    import routers

    def train(pairs: Sequence[Pair], out: Path) -> Router:
        build(pairs, out)
        return routers.load(out)

    return train


def _concluded(
    job: Job, schooling: RouterTrainingSet, judgement: Judgement, rounds: RoundState, build: Build
) -> Outcome:
    """Promote a router that is trained on everything, or keep the report, and remember the round."""
    report = router_report(schooling, judgement)
    if job.dry_run:
        return Outcome(ROUTER, False, f"dry run, nothing is changed; {rounds.sentence}", report=report)
    version = None
    if judgement.promote:
        store, pairs = job.store(ROUTER), schooling.corrected.pairs
        with store.draft() as draft:
            metrics = dict(build(pairs, draft))
            metrics |= {
                BASE: pairs_digest(schooling.base),
                LEARNT: [prompt_digest(prompt) for prompt, _ in schooling.added],
            }
            _write(draft, report)
            plot_training(metrics, draft)
            artifact = store.publish(
                draft, categories=job.registry.category_names, data=pairs_digest(pairs), metrics=metrics
            )
        version, folder = artifact.manifest.version, artifact.folder
        job.promote(ROUTER, version, instead_of=rounds.in_use, why=rounds.sentence)
        rounds = replace(rounds, in_use=version, judged=0)
    else:
        folder = keep_report(job.settings.artifacts / REPORTS, partial(_write, report=report), kind=ROUTER, now=job.now)
    write_round_state(job.settings.artifacts, ROUTER, replace(rounds, report=str(folder)))
    return Outcome(ROUTER, judgement.promote, rounds.sentence, version, str(folder), report)


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (folder / "report.md").write_text(router_markdown(report), encoding="utf-8")
    plot_round(report, folder / "report.svg")
