"""One round of learning for tenants' overlays: each judged by its own requests, those that help put into use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.core import Router
from coe.errors import DataError
from coe.jobs.plan_round import REPORTS, Job, Outcome
from coe.learning.estimation.experience import Experience
from coe.learning.estimation.experience_loader import gather
from coe.learning.retraining.overlay_round import REMEMBERED, Plain, Tried, candidates, try_overlays
from coe.learning.retraining.report import keep_report
from coe.learning.retraining.state import Rounds, write_rounds
from coe.records.record import RoutingRecord
from coe.routing.overlay import OVERLAYS_FILE

OVERLAYS = "overlays"


def learn_overlays(job: Job, experience: Experience) -> Outcome | None:
    """A round; None where no tenant has an overlay or said enough for one."""
    began = job.store(OVERLAYS).in_use()
    known = job.in_use.overlays.by_tenant
    tenants = candidates(experience).union(known)
    if not tenants:
        return None
    plain = Plain(experience.categories)
    pages = _of(tenants, job.in_use.router, job.logs.records(since=job.since, deadline=job.now))
    try:
        gathered = gather(
            plain.watched(pages),
            job.logs.feedback(since=job.since),
            categories=experience.categories,
            experts=experience.experts,
            limit=REMEMBERED,
        )
    except DataError:  # the router is new, or was asked by others only
        return None
    own = gathered.experience
    tried = try_overlays(own, plain.posterior(own), in_use=known)
    return _concluded(job, tried, began=began)


def _of(
    tenants: frozenset[str], router: Router, pages: Iterator[tuple[RoutingRecord, ...]]
) -> Iterator[tuple[RoutingRecord, ...]]:
    """The records of these tenants that this router classified: another's posterior tells of another router."""
    for page in pages:
        yield tuple(
            record
            for record in page
            if record.tenant in tenants and record.is_by(router.version, categories=router.categories)
        )


def _concluded(job: Job, tried: Sequence[Tried], *, began: str | None) -> Outcome:
    """Put those that help into use, or keep the report, and remember the round."""
    used = [one.overlay for one in tried if one.overlay is not None]
    changed = any(one.verdict in ("new", "fitted anew", "dropped") for one in tried)
    sentence = "; ".join(one.sentence for one in tried if one.verdict != "kept") or "kept as they are"
    report = {"promoted": changed, "sentence": sentence, "tenants": [_told(one) for one in tried]}
    if job.dry_run:
        return Outcome(OVERLAYS, False, f"dry run, nothing is changed; {sentence}", report=report)
    version, folder = None, None
    if changed and used:
        store, router = job.store(OVERLAYS), job.in_use.router
        with store.draft() as draft:
            (draft / OVERLAYS_FILE).write_bytes(b"".join(one.to_json() + b"\n" for one in used))
            _write(draft, report)
            metrics = {"tenants": len(used)}
            artifact = store.publish(draft, categories=router.categories, data=router.version, metrics=metrics)
        version, folder = artifact.manifest.version, artifact.folder
    if changed:
        job.promote(OVERLAYS, version, instead_of=began, why=sentence)
    if folder is None:
        folder = keep_report(
            job.settings.artifacts / REPORTS, partial(_write, report=report), kind=OVERLAYS, now=job.now
        )
    in_use = version if changed else began
    rounds = Rounds(in_use or "", 0, "", "", job.now, changed, sentence, str(folder))
    write_rounds(job.settings.artifacts, OVERLAYS, rounds)
    return Outcome(OVERLAYS, changed, sentence, version, str(folder), report)


def _told(one: Tried) -> dict[str, Any]:
    return {
        "tenant": one.tenant,
        "verdict": one.verdict,
        "requests": one.requests,
        "corrected": one.corrected,
        "contrast": None if one.contrast is None else asdict(one.contrast),
        "sentence": one.sentence,
    }


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    lines = "".join(f"- {one['sentence']}\n" for one in report["tenants"])
    (folder / "report.md").write_text(f"# Overlays\n\n{lines}", encoding="utf-8")
