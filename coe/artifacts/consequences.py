"""Consequences of experts.yaml for the router, plan and gate in use; for `coe check`, start and reload."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from coe.artifacts.active_state import check_fit, packaged_router, read_plan
from coe.artifacts.kinds import ASSIGNMENT, GATE, ROUTER
from coe.artifacts.manifest import Artifact, noting
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL
from coe.planning.effective_plan import Consequence
from coe.registry import Registry
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
