"""The learning round of tenants' overlays: judges each tenant's overlay by its own requests.

The fit and the test are in `coe.learning.retraining.overlay_round`. All overlays of a router are one artifact, which
holds those that help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.artifacts.kinds import OVERLAYS
from coe.core import Router
from coe.errors import DataError
from coe.jobs.round import Candidate, Job, ManifestFields
from coe.learning.estimation.experience import Experience
from coe.learning.retraining.overlay_round import (
    MAX_POSTERIORS,
    OverlayResult,
    RouterPosteriors,
    eligible_tenants,
    judge_overlays,
)
from coe.learning.retraining.state import RoundState
from coe.records.record import RoutingRecord
from coe.routing.classification import OVERLAYS_FILE, Overlay


@dataclass(frozen=True, slots=True)
class OverlayRound:
    """Needs a tenant that has an overlay, or has corrected enough requests of `experience` for one."""

    experience: Experience
    kind: str = OVERLAYS

    def judge(self, job: Job) -> Candidate | str | None:
        version = job.store(OVERLAYS).in_use()
        in_use = job.in_use.overlays.by_tenant
        tenants = eligible_tenants(self.experience).union(in_use)
        if not tenants:
            return None
        router = job.in_use.router
        posteriors = RouterPosteriors(router.categories)
        pages = _requests_of(tenants, router, job.records())
        try:
            own = job.experience(posteriors.observe(pages), limit=MAX_POSTERIORS).experience
        except DataError:  # the router is new, or has had requests of other tenants only
            return None
        return _candidate(judge_overlays(own, posteriors.of(own), in_use=in_use), job, version=version)


def _requests_of(
    tenants: frozenset[str], router: Router, pages: Iterator[tuple[RoutingRecord, ...]]
) -> Iterator[tuple[RoutingRecord, ...]]:
    """The records of these tenants that this router classified: posteriors of another router do not compare."""
    for page in pages:
        yield tuple(
            record
            for record in page
            if record.tenant in tenants and record.is_by(router.version, categories=router.categories)
        )


def _candidate(results: Sequence[OverlayResult], job: Job, *, version: str | None) -> Candidate:
    overlays = [one.overlay for one in results if one.overlay is not None]
    changed = any(one.verdict in ("new", "refitted", "dropped") for one in results)
    sentence = "; ".join(one.sentence for one in results if one.verdict != "kept") or "kept as they are"
    report = {"promoted": changed, "sentence": sentence, "tenants": [one.to_json() for one in results]}
    return Candidate(
        RoundState(version or "", 0, "", "", job.now, changed, sentence, ""),
        replaces=version,
        report=report,
        write_report=partial(_write_report, report=report),
        save=partial(_save, overlays, router=job.in_use.router) if overlays else None,
    )


def _save(overlays: Sequence[Overlay], folder: Path, *, router: Router) -> ManifestFields:
    (folder / OVERLAYS_FILE).write_bytes(b"".join(overlay.to_json() + b"\n" for overlay in overlays))
    return {"categories": router.categories, "data": router.version, "metrics": {"tenants": len(overlays)}}


def _write_report(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    lines = "".join(f"- {one['sentence']}\n" for one in report["tenants"])
    (folder / "report.md").write_text(f"# Overlays\n\n{lines}", encoding="utf-8")
