"""Puts a published version into use, or goes back, after the checks by which a gateway would refuse it.

`coe promote`, `coe rollback` and the page's buttons all do it here. Gateways take it over
as `gateway/process/reload.py` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import routers
from coe.artifacts.manifest import Artifact
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError
from coe.registry import load
from coe.retrieval.gate import FILE, Gate
from coe.runtime.active_state import (
    ASSIGNMENT,
    GATE,
    OVERLAYS,
    ROUTER,
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
    """What was in use of a kind, and what is; None for none."""

    kind: str
    was: str | None
    in_use: str | None


def promote(settings: Settings, store: ArtifactStore, kind: str, version: str, *, why: str) -> VersionChange:
    """Put a version into use. Raises ArtifactError or ConfigError, with nothing changed, where it is damaged, or where
    a gateway with this experts.yaml would refuse it."""
    was = store.in_use()
    check_fits(settings, kind, store.published(version))
    store.promote(version, by="hand", why=why)
    return VersionChange(kind, was, version)


def roll_back(settings: Settings, store: ArtifactStore, kind: str, *, why: str) -> VersionChange:
    """Go back to what was in use before; once more, to what was before that. Raises as `promote` does, and where
    nothing was."""
    was = store.in_use()
    version = rollback_target(store, kind)
    if version is None:
        store.clear(by="rollback", why=why)
    else:
        check_fits(settings, kind, store.published(version))
        store.promote(version, by="rollback", why=why)
    return VersionChange(kind, was, version)


def rollback_target(store: ArtifactStore, kind: str) -> str | None:
    """What `roll_back` would put into use; None for none, or what experts.yaml declares. Raises ArtifactError where
    there is nothing to go back to."""
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
    if set(Gate.load(artifact.folder / FILE).categories) != set(declared):
        raise ArtifactError(f"gate {artifact.manifest.version} is of other categories than experts.yaml declares")


_CHECKS = {ROUTER: _check_router, ASSIGNMENT: _check_assignment, OVERLAYS: _check_overlays, GATE: _check_gate}
