"""Versions of one kind of artifact: listed and described as JSON, put into use or rolled back after a gateway's checks.

`coe promote`, `coe rollback`, `coe versions`, the admin API and the buttons of the UI call it. Gateways reload a
version as `gateway/process/reload.py` describes.

Consequences of experts.yaml for the router, plan and gate in use; for `coe check`, start and reload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

import routers
from coe.artifacts.active_state import check_fit, packaged_router, read_plan
from coe.artifacts.manifest import ASSIGNMENT, GATE, ROUTER, Artifact, Manifest, noting
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL
from coe.errors import ArtifactError, ArtifactNotFound
from coe.planning.plan import Consequence, Plan
from coe.planning.solver import planned_quality
from coe.registry import Registry, load
from coe.retrieval.gate import GATE_FILE, Gate
from coe.settings import Settings

_log = logging.getLogger("gateway")


def consequences_of(
    settings: Settings, registry: Registry, *, damaged: dict[str, str] | None = None
) -> tuple[Consequence, ...]:
    """Return the consequences of differences between a declaration and the artifacts in use; empty without any.

    Raises ArtifactError or ConfigError, with the remedy, for a difference that would prevent a start. With `damaged`,
    artifacts other than the router that cannot be read have no consequences, and their problem is put there by kind.
    """
    router = ArtifactStore(settings.artifacts, ROUTER).current() or packaged_router(registry)
    found = list[Consequence]()
    if router is not None:
        check_fit(registry, router)
        found += _router_consequences(registry, router)
    with noting(damaged, ASSIGNMENT):
        if (plan := ArtifactStore(settings.artifacts, ASSIGNMENT).current()) is not None:
            found += read_plan(registry, plan).consequences
    if router is not None:
        with noting(damaged, GATE):
            found += _gate(settings, registry)
    return tuple(found)


def log_consequences(found: Sequence[Consequence]) -> None:
    """Logs one line each; a warning if `coe plan` should be run again."""
    for one in found:
        _log.log(logging.WARNING if one.replan else logging.INFO, "%s", one.sentence)


def _router_consequences(registry: Registry, artifact: Artifact) -> Iterator[Consequence]:
    trained = artifact.manifest.categories
    for name in registry.category_names:
        if name not in trained and name != GENERAL:
            sentence = f"category {name!r}: until `coe train` is run, the router recognises it only from its examples"
            yield Consequence("router", name, sentence)
    left = [name for name in trained if name not in registry.category_names]
    if left:
        named = f"category {left[0]!r}: its" if len(left) == 1 else f"categories {', '.join(left)}: their"
        yield Consequence("router", ", ".join(left), f"{named} requests count as {GENERAL!r}")


def _gate(settings: Settings, registry: Registry) -> Iterator[Consequence]:
    store = ArtifactStore(settings.artifacts, GATE)
    version = None if registry.retrieval.store is None else store.in_use()
    if version is not None and set(store.manifest(version).categories) != set(registry.category_names):
        sentence = (
            "the retrieval gate was fitted to other categories; it stays unused until `coe score --retrieval both` and "
            "`coe plan` are run"
        )
        yield Consequence("gate", version, sentence)


@dataclass(frozen=True, slots=True)
class VersionChange:
    """The previous and the new version in use of a kind; None for none."""

    kind: str
    was: str | None
    in_use: str | None


def promote(settings: Settings, store: ArtifactStore, kind: str, version: str, *, why: str) -> VersionChange:
    """Puts a version into use. Raises ArtifactError or ConfigError, with nothing changed, if it is damaged or a gateway
    with this experts.yaml would refuse it."""
    was = store.in_use()
    check_promotable(settings, kind, store.published(version))
    store.promote(version, by="hand", why=why)
    return VersionChange(kind, was, version)


def roll_back(settings: Settings, store: ArtifactStore, kind: str, *, why: str) -> VersionChange:
    """Restores the version that was in use before the last promotion. A second call restores the one before that.
    Raises like `promote`, and ArtifactError if there is no previous version."""
    was = store.in_use()
    version = rollback_target(store, kind)
    if version is None:
        store.clear(by="rollback", why=why)
    else:
        check_promotable(settings, kind, store.published(version))
        store.promote(version, by="rollback", why=why)
    return VersionChange(kind, was, version)


def rollback_target(store: ArtifactStore, kind: str) -> str | None:
    """The version that `roll_back` would restore; None for none, or for the declared assignment. Raises ArtifactError
    if there is nothing to restore."""
    move = store.last_promotion()
    if move is None or (move.was is None and kind == ROUTER):
        raise ArtifactError(
            f"rollback: no {kind} was in use before {store.in_use() or 'this'}; name one to `coe promote`"
        )
    return move.was


def check_promotable(settings: Settings, kind: str, artifact: Artifact) -> None:
    """Raises ArtifactError or ConfigError for a version that a gateway with this experts.yaml would refuse."""
    declared = load(settings.config, environ=settings.environ)
    if kind == ROUTER:
        check_fit(declared, artifact)
        routers.check(artifact.folder)
    elif kind == ASSIGNMENT:
        read_plan(declared, artifact)
    elif set(Gate.load(artifact.folder / GATE_FILE).categories) != set(declared.category_names):
        raise ArtifactError(f"gate {artifact.manifest.version} was fitted to other categories than experts.yaml has")


MAX_LISTED = 100
"""Newest versions and moves of a kind that are listed."""
ORIGINS = ("train", "plan", "retrain", "packaged")
"""Moves that bring a new version; the other ones put an existing version into use."""
REPORT = "report.json"
"""Report of the learning round, stored in the folder of the promoted version."""


class VersionCatalog:
    """The artifacts of one kind under a root folder. An intact version never changes, so its manifest is read once."""

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
        known = {version: one for version, one in self._summaries.items() if not one["damaged"]}
        self._summaries = {version: known.get(version) or self._summary(version) for version in published}
        newest = sorted(self._summaries.values(), key=lambda one: str(one["created"] or ""), reverse=True)
        moves, damage = self._moves()
        in_use: str | None = None
        try:
            in_use = self._store.in_use()
        except ArtifactError as error:
            damage = str(error)
        # Moves come newest first, so the first move that brought a version is its origin.
        origins = {move["version"]: move["by"] for move in moves if move["version"] and move["by"] in ORIGINS}
        newest = [one | {"origin": origins.get(one["version"])} for one in newest]
        return {
            "kind": self.kind,
            "in_use": in_use,
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
            found |= {"metrics": dict(artifact.manifest.metrics)} | _contents(self.kind, artifact)
        except (ArtifactError, OSError) as error:
            found["damaged"] = str(error)
        return {"object": "artifact", "kind": self.kind, **found}

    def _summary(self, version: str) -> dict[str, Any]:
        try:
            manifest = self._store.manifest(version)
        except ArtifactError as error:
            nothing: dict[str, Any] = {"created": None, "data": "", "categories": [], "metrics": {}, "quality": None}
            return {"version": version, "damaged": str(error), **nothing}
        quality, damage = self._quality(manifest)
        plain = {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float | str)}
        return {
            "version": version,
            "created": manifest.created,
            "damaged": damage,
            "data": manifest.data,
            "categories": manifest.categories,
            "metrics": plain,
            "quality": quality,
        }

    def _quality(self, manifest: Manifest) -> tuple[float | None, str | None]:
        """The version's measured quality, None if unknown; and the problem of a damaged version."""
        try:
            found = _measured_quality(self.kind, self._store.folder(manifest.version), manifest)
        except (ArtifactError, OSError) as error:
            return None, str(error)
        return None if found is None else float(found), None

    def _moves(self) -> tuple[list[dict[str, Any]], str | None]:
        try:
            return [asdict(move) for move in reversed(self._store.history())], None
        except ArtifactError as error:
            return [], str(error)

    def _rollback_version(self) -> dict[str, Any] | None:
        """The version that a rollback would restore; None if there is nothing to restore."""
        try:
            return {"version": rollback_target(self._store, self.kind)}
        except ArtifactError:
            return None


def _measured_quality(kind: str, folder: Path, manifest: Manifest) -> float | None:
    """The quality that `ARTIFACT_KINDS` describes. Raises ArtifactError or OSError for damaged files."""
    if kind == ROUTER:
        return manifest.metric("accuracy")
    if kind == ASSIGNMENT:
        plan = Plan.read(folder)
        return planned_quality(plan.problem, plan.assignment)
    return manifest.metric("all", "gated")


def _contents(kind: str, artifact: Artifact) -> dict[str, Any]:
    """The contents of the files of a version. Raises ArtifactError or OSError for damaged ones."""
    if kind != ASSIGNMENT:
        return {}
    folder = artifact.folder
    plan = Plan.read(folder)
    report = folder / REPORT
    return {
        "choice": dict(zip(plan.assignment.categories, plan.assignment.choice, strict=True)),
        "budget": dict(plan.problem.budget),
        "source": plan.source,
        "learning": orjson.loads(report.read_bytes()) if report.is_file() else None,
    }
