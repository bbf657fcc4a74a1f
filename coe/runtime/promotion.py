"""Puts a published version into use, or rolls back, after the checks that a gateway would make.

`coe promote`, `coe rollback` and the buttons of the UI call it. Gateways reload the version as
`gateway/process/reload.py` describes.
"""

from __future__ import annotations

from dataclasses import dataclass

import routers
from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS, ROUTER
from coe.artifacts.manifest import Artifact
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError
from coe.registry import load
from coe.retrieval.gate import GATE_FILE, Gate
from coe.runtime.active_state import (
    check_fit,
    check_router,
    load_router,
    overlays_fit_router,
    read_overlays,
    read_plan,
    wrong_router_message,
)
from coe.settings import Settings


@dataclass(frozen=True, slots=True)
class VersionChange:
    """The version that was in use of a kind, and the one that is; None for none."""

    kind: str
    was: str | None
    in_use: str | None


def promote(settings: Settings, store: ArtifactStore, kind: str, version: str, *, why: str) -> VersionChange:
    """Puts a version into use. Raises ArtifactError or ConfigError, with nothing changed, if it is damaged or a gateway
    with this experts.yaml would refuse it."""
    was = store.in_use()
    check_fits(settings, kind, store.published(version))
    store.promote(version, by="hand", why=why)
    return VersionChange(kind, was, version)


def roll_back(settings: Settings, store: ArtifactStore, kind: str, *, why: str) -> VersionChange:
    """Restores the previous version; repeated, the one before. Raises like `promote`, and if there is no previous
    version."""
    was = store.in_use()
    version = rollback_target(store, kind)
    if version is None:
        store.clear(by="rollback", why=why)
    else:
        check_fits(settings, kind, store.published(version))
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


def check_fits(settings: Settings, kind: str, artifact: Artifact) -> None:
    """Raises ArtifactError or ConfigError for a version that a gateway with this experts.yaml would refuse."""
    _CHECKS[kind](settings, artifact)


def _check_router(settings: Settings, artifact: Artifact) -> None:
    check_fit(load(settings.config, environ=settings.environ), artifact)
    routers.check(artifact.folder)


def _check_assignment(settings: Settings, artifact: Artifact) -> None:
    read_plan(load(settings.config, environ=settings.environ), artifact)


def _check_overlays(settings: Settings, artifact: Artifact) -> None:
    found = read_overlays(artifact)
    router = load_router(*check_router(settings))
    if not overlays_fit_router(artifact, found, router):
        raise ArtifactError(wrong_router_message(artifact, router))


def _check_gate(settings: Settings, artifact: Artifact) -> None:
    declared = load(settings.config, environ=settings.environ).category_names
    if set(Gate.load(artifact.folder / GATE_FILE).categories) != set(declared):
        raise ArtifactError(f"gate {artifact.manifest.version} is of other categories than experts.yaml declares")


_CHECKS = {ROUTER: _check_router, ASSIGNMENT: _check_assignment, OVERLAYS: _check_overlays, GATE: _check_gate}
