"""Lists the versions and promotions of one kind of artifact, and describes one version, as JSON.

The admin API and `coe promote --list` show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS, ROUTER
from coe.artifacts.manifest import Artifact, Manifest
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ArtifactNotFound
from coe.mapping import Assignment, planned_quality, read_plan_file, read_published
from coe.runtime.active_state import read_overlays
from coe.runtime.promotion import rollback_target

MAX_LISTED = 100
"""Newest versions and moves of a kind that are listed."""
TRAINING_JOBS = ("train", "plan", "retrain")
"""Jobs that make versions; the other moves put an existing version into use."""
CORRECTION_DIGESTS = "corrections"
"""A router's metric: digests of all prompts that it learned from traffic, shown as their number."""
REPORT = "report.json"
"""Report of the learning round, stored beside what it promoted."""


class VersionCatalog:
    """The artifacts of one kind under a root folder. Manifests never change, so each is read once."""

    def __init__(self, root: Path, kind: str) -> None:
        self.kind = kind
        self._store = ArtifactStore(root, kind)
        self._summaries: dict[str, dict[str, Any]] = {}

    def in_use(self) -> str | None:
        """The version in use, without reading it."""
        return self._store.in_use()

    def list_versions(self) -> dict[str, Any]:
        """Versions and moves, newest first; blocks on the disk."""
        published = self._store.versions()
        self._summaries = {version: self._summaries.get(version) or self._summary(version) for version in published}
        newest = sorted(self._summaries.values(), key=lambda one: str(one["created"] or ""), reverse=True)
        moves, damage = self._moves()
        origins = _origins(moves)
        newest = [one | {"origin": origins.get(one["version"])} for one in newest]
        return {
            "kind": self.kind,
            "in_use": self._store.in_use(),
            "before": self._rollback_version(),
            "versions": newest[:MAX_LISTED],
            "more_versions": max(len(newest) - MAX_LISTED, 0),
            "history": moves[:MAX_LISTED],
            "more_history": max(len(moves) - MAX_LISTED, 0),
            "damaged": damage,
        }

    def details(self, version: str) -> dict[str, Any]:
        """One version with its report, every file verified; blocks on the disk. Raises ArtifactNotFound."""
        if version not in self._store.versions():
            raise ArtifactNotFound(f"no {self.kind} {version[:64]!r} is published here")
        found = self._summary(version)
        try:
            artifact = self._store.published(version)
            found |= {"metrics": _metrics(artifact.manifest)} | _CONTENTS[self.kind](artifact)
        except (ArtifactError, OSError) as error:
            found["damaged"] = str(error)
        return {"object": "artifact", "kind": self.kind, **found}

    def _summary(self, version: str) -> dict[str, Any]:
        try:
            manifest = self._store.manifest(version)
        except ArtifactError as error:
            nothing: dict[str, Any] = {"created": None, "data": "", "categories": [], "metrics": {}, "quality": None}
            return {"version": version, "damaged": str(error), **nothing}
        plain = {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float | str)}
        return {
            "version": version,
            "created": manifest.created,
            "damaged": None,
            "data": manifest.data,
            "categories": manifest.categories,
            "metrics": plain,
            "quality": self._quality(manifest),
        }

    def _quality(self, manifest: Manifest) -> float | None:
        """The version's measured quality; None if unknown or its files are damaged."""
        try:
            found = _QUALITY[self.kind](self._store.folder(manifest.version), manifest)
        except (ArtifactError, OSError):
            return None
        return None if found is None else float(found)

    def _moves(self) -> tuple[list[dict[str, Any]], str | None]:
        try:
            return [asdict(move) for move in reversed(self._store.history())], None
        except ArtifactError as error:
            return [], str(error)

    def _rollback_version(self) -> dict[str, Any] | None:
        """What a rollback would restore; None if there is nothing to restore."""
        try:
            return {"version": rollback_target(self._store, self.kind)}
        except ArtifactError:
            return None


def _origins(moves: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The job that first put each version into use. `moves` has the newest first."""
    return {move["version"]: move["by"] for move in moves if move["version"] and move["by"] in TRAINING_JOBS}


def _accuracy(_: Path, manifest: Manifest) -> Any:
    return manifest.metrics.get("accuracy")


def _planned_quality(folder: Path, manifest: Manifest) -> float | None:
    plan = read_published(folder, manifest.version)
    return None if plan.record is None else planned_quality(plan.record.problem, plan.assignment)


def _mean_gain(folder: Path, manifest: Manifest) -> float | None:
    gains = [one.gain for one in read_overlays(Artifact(folder, manifest))]
    return sum(gains) / len(gains) if gains else None


def _gated(_: Path, manifest: Manifest) -> Any:
    return manifest.metrics.get("all", {}).get("gated")


_QUALITY: Mapping[str, Callable[[Path, Manifest], Any]] = {
    ROUTER: _accuracy,
    ASSIGNMENT: _planned_quality,
    OVERLAYS: _mean_gain,
    GATE: _gated,
}


def _metrics(manifest: Manifest) -> dict[str, Any]:
    found = dict(manifest.metrics)
    if isinstance(digests := found.get(CORRECTION_DIGESTS), list):
        found[CORRECTION_DIGESTS] = len(digests)
    return found


def _no_contents(_: Artifact) -> dict[str, Any]:
    return {}


def _assignment(artifact: Artifact) -> dict[str, Any]:
    folder = artifact.folder
    plan = Assignment.from_json((folder / f"{ASSIGNMENT}.json").read_bytes())
    kept = read_plan_file(folder) or {}
    report = folder / REPORT
    return {
        "choice": dict(zip(plan.categories, plan.choice, strict=True)),
        "budget": kept.get("budget"),
        "source": kept.get("source"),
        "learning": orjson.loads(report.read_bytes()) if report.is_file() else None,
    }


def _overlays(artifact: Artifact) -> dict[str, Any]:
    found = read_overlays(artifact)
    return {
        "tenants": [
            {"tenant": o.tenant, "gain": o.gain, "requests": o.requests, "fitted_until": o.fitted_until} for o in found
        ]
    }


_CONTENTS = {ROUTER: _no_contents, ASSIGNMENT: _assignment, OVERLAYS: _overlays, GATE: _no_contents}
