"""One round of learning for the assignment: logs, router and plan in; a candidate judged, and promoted or not.

Since when the assignment in use has served all by itself, as the routing log shows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from coe.artifacts.redis import RedisArtifacts, mirror
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError
from coe.learning.estimation.experience import Experience
from coe.learning.estimation.experience_loader import Gathered, Logs, gather, open_logs
from coe.learning.estimation.refit import STRONGEST_SHRINKAGE, Weighting
from coe.learning.evaluation.probe_split import probe_parts
from coe.learning.evaluation.quality import read_quality
from coe.learning.retraining.budget_solver import Budgeted
from coe.learning.retraining.job_lock import Assure, only_job
from coe.learning.retraining.plan_round import Current, Probes, Round, retrain
from coe.learning.retraining.report import keep_report, round_report, write_report
from coe.learning.retraining.state import STATE, Rounds, read_rounds, write_rounds
from coe.mapping import Basis, PlanEvidence, read_evidence
from coe.mapping.score_table import ScoreTable, fit_pseudo_count
from coe.registry import Registry, load
from coe.routing.cost_weight import relative_use
from coe.runtime.artifact_sync import synced_share
from coe.settings import Settings

if TYPE_CHECKING:
    from coe.runtime.active_state import ActiveState
import math
from collections.abc import Iterable, Sequence

from coe.records.record import RoutingRecord


class PolicyWindow:
    """Looks at pages of records that pass through; afterwards `since` is the time (Unix seconds) from which on all
    were decided by the assignment of this digest (its start, as records have it) and explored as declared.

    So neither clocks nor gateways that take a promotion over a little later lead to requests of another policy being
    taken for its own.
    """

    def __init__(self, digest: str, *, exploration: tuple[float, float] | None) -> None:
        self._digest, self._exploration = digest, exploration
        self.since = 0.0

    def watched(self, pages: Iterable[Sequence[RoutingRecord]]) -> Iterator[Sequence[RoutingRecord]]:
        """The same pages."""
        for page in pages:
            for record in page:
                if not self._own(record):
                    self.since = max(self.since, math.nextafter(record.time, math.inf))
            yield page

    def _own(self, record: RoutingRecord) -> bool:
        decided = bool(record.assignment) and self._digest.startswith(record.assignment)
        return not record.category or (decided and record.exploration == self._exploration)


ASSIGNMENT, REPORTS = "assignment", "reports"
NOTHING = "nothing to learn from"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one kind of artifact; `version` is what was promoted, `report` is empty without a judgement."""

    kind: str
    promoted: bool
    sentence: str
    version: str | None = None
    folder: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A job under its lock: what is in use, the logs from `since` to `now` (Unix seconds), and the check to make
    before anything is changed."""

    settings: Settings
    in_use: ActiveState
    logs: Logs
    assure: Assure
    since: float
    now: float
    dry_run: bool
    share: RedisArtifacts | None = None

    @property
    def registry(self) -> Registry:
        return self.in_use.registry

    def store(self, kind: str) -> ArtifactStore:
        return ArtifactStore(self.settings.artifacts, kind, self.share)

    def promote(self, kind: str, version: str | None, *, instead_of: str | None, why: str) -> None:
        """Have the version in use, or none. Raises JobError or ArtifactError, and moves nothing, where anything has
        changed since the job began."""
        declared = load(self.settings.config, environ=self.settings.environ).digest
        mirror([self.store(kind)])
        if declared != self.registry.digest or self.store(kind).in_use() != instead_of:
            raise ArtifactError(f"retrain: {kind} or experts.yaml was changed meanwhile; nothing is promoted")
        self.assure()
        if version is None:
            self.store(kind).clear(by="retrain", why=why)
        else:
            self.store(kind).promote(version, by="retrain", why=why)


@contextmanager
def begun(settings: Settings, *, since: float, now: float, dry_run: bool) -> Iterator[Job]:
    """Hold the lock and the logs. Raises JobError, LogError, or what is wrong with what is in use."""
    from coe.runtime.active_state import load_active_state

    url = load(settings.config, environ=settings.environ).log.url
    with only_job(url, home=settings.home) as assure, open_logs(url, base=settings.home) as logs:
        share = synced_share(settings)
        if share is not None:
            share.fetch_file(STATE, settings.artifacts)
        try:
            yield Job(settings, load_active_state(settings), logs, assure, since, now, dry_run, share)
        finally:
            if share is not None and (state := settings.artifacts / STATE).is_file():
                share.put_file(STATE, state.read_bytes())


def learn_assignment(
    job: Job, *, probes: Path | None, benchmark: str | None = None
) -> tuple[Outcome, Experience | None]:
    """A round, and the experience it learnt from, None where there is none."""
    registry, assignment = job.registry, job.in_use.assignment
    began, measured = job.store(ASSIGNMENT).in_use(), _measured(job, probes, benchmark)
    last = read_rounds(job.settings.artifacts).get(ASSIGNMENT)
    known = Rounds(assignment.digest, 0, measured.digest, last.feedback if last else "", job.now, False, NOTHING, "")
    if last and last.in_use == known.in_use:
        known = replace(known, judged=last.judged, tested=last.tested, tested_at=last.tested_at)
    new, cursor = _new_feedback(job.logs, after=known.feedback)
    if not new and (last.inputs == known.inputs and last.in_use == known.in_use if last else probes is None):
        return Outcome(ASSIGNMENT, False, f"{NOTHING}: no feedback is new"), None
    exploration = registry.policy.exploration
    declared = (exploration.rate, exploration.max_quality_loss) if exploration.rate else None
    tenure = PolicyWindow(assignment.digest, exploration=declared)
    try:
        gathered = _gathered(job, tenure)
    except DataError as error:
        return Outcome(ASSIGNMENT, False, f"{NOTHING}: {error}"), None
    charge = registry.policy.cost_weight * relative_use(registry)
    current = Current(
        assignment,
        since=tenure.since,
        rounds=known.judged,
        rate=exploration.rate,
        loss=exploration.max_quality_loss,
        charge=charge,
        tested=known.tested,
        tested_at=known.tested_at,
    )
    plan, evidence = Budgeted(registry, gathered.experience), _evidence_in_use(job, began)
    base = evidence.measured if measured.table is None else measured.table
    found = retrain(
        gathered.experience,
        current,
        now=job.now,
        plan=plan,
        probes=measured.probes,
        base=base,
        weighting=measured.weighting,
        guarded=registry.category_names,
    )
    report = round_report(found, current, experience=gathered.experience, left_out=gathered.left_out)
    rounds = replace(known, feedback=cursor, promoted=found.judgement.promote, sentence=found.judgement.sentence)
    if found.judgement.evidence and found.tested:
        rounds = replace(rounds, judged=found.judgement.round_, tested=found.rated, tested_at=found.rated_until)
    moved = tuple(sorted({*evidence.moved, *(move.category for move in found.moves if move.accepted)}))
    basis = plan.basis(found.refit, found.candidate.quality, measured=base, moved=moved)
    return _concluded(job, found, report, rounds, basis, began=began), gathered.experience


def _evidence_in_use(job: Job, version: str | None) -> PlanEvidence:
    """The evidence behind the plan in use, over what is declared now."""
    if version is None:
        return PlanEvidence()
    return read_evidence(
        job.store(ASSIGNMENT).published(version).folder,
        categories=job.in_use.router.categories,
        experts=job.registry.expert_names,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measured quality, if any was given; `digest` is that of all a round depends on beside the logs."""

    digest: str
    table: ScoreTable | None = None
    probes: Probes | None = None
    weighting: Weighting = field(default_factory=Weighting)


def _measured(job: Job, folder: Path | None, benchmark: str | None) -> _Measured:
    declared = job.registry.digest
    if folder is None:
        return _Measured(declared)
    data, router = read_quality(folder, benchmark=benchmark), job.in_use.router
    table, probes = probe_parts(
        data,
        categories=router.categories,
        experts=job.registry.expert_names,
        posteriors=lambda texts: np.stack([found.probabilities for found in router.predict(texts)]),
    )
    contents = orjson.dumps((declared, data.digest, hashlib.sha256(data.scores.tobytes()).hexdigest()))
    columns = [data.models.index(name) for name in job.registry.expert_names]
    fitted = fit_pseudo_count(data.categories, data.scores[:, columns])
    pulled = Weighting(pseudo_count=min(fitted, STRONGEST_SHRINKAGE))
    return _Measured(hashlib.sha256(contents).hexdigest(), table, probes, pulled)


def _new_feedback(logs: Logs, *, after: str) -> tuple[int, str]:
    """How many events there are after the cursor, and the cursor after them."""
    count = 0
    for page in logs.pages(after=after):
        count, after = count + len(page.events), page.cursor
    return count, after


def _gathered(job: Job, tenure: PolicyWindow) -> Gathered:
    known = job.logs.damaged
    found = gather(
        tenure.watched(job.logs.records(since=job.since, deadline=job.now)),
        job.logs.feedback(since=job.since),
        categories=job.in_use.router.categories,
        experts=job.registry.expert_names,
    )
    if damaged := job.logs.damaged - known:
        return replace(found, left_out={**found.left_out, "damaged entries": damaged})
    return found


def _concluded(
    job: Job, found: Round, report: dict[str, Any], rounds: Rounds, basis: Basis, *, began: str | None
) -> Outcome:
    """Promote, or keep the report, and remember the round."""
    if job.dry_run:
        return Outcome(ASSIGNMENT, False, f"dry run, nothing is changed; {rounds.sentence}", report=report)
    version = None
    if rounds.promoted:
        with job.store(ASSIGNMENT).draft() as draft:
            (draft / f"{ASSIGNMENT}.json").write_bytes(found.candidate.to_json())
            basis.save(draft, found.candidate)
            write_report(draft, report)
            artifact = job.store(ASSIGNMENT).publish(
                draft, categories=found.candidate.categories, data=job.registry.digest, metrics={}
            )
        version, folder = artifact.manifest.version, artifact.folder
        job.promote(ASSIGNMENT, version, instead_of=began, why=rounds.sentence)
        rounds = replace(rounds, in_use=found.candidate.digest)
        if any(move.verdict == "better" for move in found.moves):  # opening for exploration goes on with the series
            rounds = replace(rounds, judged=0, tested=0, tested_at=0.0)
    else:
        reports = job.settings.artifacts / REPORTS
        folder = keep_report(reports, partial(write_report, report=report), kind=ASSIGNMENT, now=job.now)
    write_rounds(job.settings.artifacts, ASSIGNMENT, replace(rounds, report=str(folder)))
    return Outcome(ASSIGNMENT, rounds.promoted, rounds.sentence, version, str(folder), report)
