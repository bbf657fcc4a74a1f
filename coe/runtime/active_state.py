"""Loads the active state: the declaration, and the promoted router, overlays, assignment and retrieval gate.

The gateway loads it at start and on reload, jobs at their start. `check_active_state` checks the same without loading a
router, which a parent process may do before it forks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import routers
from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS, ROUTER
from coe.artifacts.manifest import Artifact
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL, Router
from coe.errors import ArtifactError, ConfigError
from coe.mapping import Assignment, Consequence, EffectivePlan, effective_plan, read_published
from coe.mapping.declaration import declared_assignment
from coe.registry import Registry, load
from coe.retrieval.gate import GATE_FILE, Gate, OutdatedGate
from coe.retrieval.retrieval import Retrieval
from coe.routing.overlay import OVERLAYS_FILE, Overlay, Overlays
from coe.runtime.api_keys import with_admin_key
from coe.runtime.document_index import DocumentIndex, check_store, open_index
from coe.settings import Settings

MIN_EXAMPLES = 2
"""Examples by which a category works without training."""


_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class ActiveState:
    """A declaration with the artifacts in use.

    `confidence_threshold` is the confidence below which training found the router's answers unreliable; `folder` is the
    router's.
    """

    registry: Registry
    router: Router
    assignment: Assignment
    confidence_threshold: float
    folder: Path
    overlays: Overlays = field(default_factory=Overlays)
    index: DocumentIndex | None = None
    """The declared document store; None without one."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """The version that was read of each kind of artifact except the gate, None for none."""
    consequences: tuple[Consequence, ...] = ()
    """The differences of the declaration from the plan in use."""


def load_active_state(settings: Settings, previous: ActiveState | None = None) -> ActiveState:
    """Loads everything, except the router of `previous` if its artifact and the declared categories are unchanged.
    Raises ConfigError or ArtifactError with the remedy."""
    registry, artifact = check_router(settings)
    unchanged = previous is not None and previous.folder == artifact.folder
    if previous is not None and unchanged and previous.registry.categories == registry.categories:
        router = previous.router
    else:
        router = load_router(registry, artifact)
    confidence_threshold = artifact.manifest.metrics.get("confidence_threshold", 0.0)
    plan_version = ArtifactStore(settings.artifacts, ASSIGNMENT).in_use()
    planned = assignment_in_use(settings, registry, router.categories)
    overlays_version = ArtifactStore(settings.artifacts, OVERLAYS).in_use()
    overlays = overlays_in_use(settings, router)
    index = _document_index(settings, registry, artifact.folder, previous)
    versions = {ROUTER: artifact.manifest.version, ASSIGNMENT: plan_version, OVERLAYS: overlays_version}
    return ActiveState(
        registry,
        router,
        planned.assignment,
        float(confidence_threshold),
        artifact.folder,
        overlays,
        index,
        versions,
        planned.consequences,
    )


def _document_index(
    settings: Settings, registry: Registry, folder: Path, previous: ActiveState | None
) -> DocumentIndex | None:
    """The previous one if store and encoder are unchanged."""
    if registry.retrieval.store is None:
        return None
    unchanged = previous is not None and previous.folder == folder and previous.registry.retrieval == registry.retrieval
    if unchanged and previous is not None and previous.index is not None:
        return previous.index
    return open_index(settings, registry, folder)


def check_active_state(settings: Settings) -> tuple[Registry, Artifact]:
    """The declaration and the router's artifact, checked with the plan and the document store, without loading
    anything. Raises ConfigError or ArtifactError with the remedy."""
    registry, artifact = check_router(settings)
    assignment_in_use(settings, registry, registry.category_names)
    check_store(settings, registry)
    return registry, artifact


def check_router(settings: Settings) -> tuple[Registry, Artifact]:
    """The declaration and the router's artifact, checked. Raises ConfigError or ArtifactError with the remedy."""
    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    artifact = ArtifactStore(settings.artifacts, ROUTER).current()
    if artifact is None:
        raise ArtifactError(
            f"{settings.artifacts}: no router is trained yet; run `coe train`, or `coe up`, which does it"
        )
    check_fit(registry, artifact)
    routers.check(artifact.folder)
    return registry, artifact


def load_router(registry: Registry, artifact: Artifact) -> Router:
    """The trained router over the declared categories. Raises ArtifactError if it is damaged."""
    return routers.load(artifact.folder, declared=category_texts(registry), version=artifact.manifest.version)


def check_fit(registry: Registry, artifact: Artifact) -> None:
    """Raises ArtifactError for a router without any declared category, ConfigError for a new category with too few
    examples."""
    router, trained = f"router {artifact.manifest.version}", set(artifact.manifest.categories)
    declared = set(registry.category_names) - {GENERAL}
    if declared and not declared & trained:
        known = ", ".join(sorted(trained))
        raise ArtifactError(
            f"{router} knows none of the categories in experts.yaml (it knows {known}); run `coe train`"
        )
    if without_examples := [
        name for name, texts in category_texts(registry).items() if name in declared - trained and not texts
    ]:
        raise ConfigError(
            f"{router} was not trained on {', '.join(without_examples)}: give each {MIN_EXAMPLES} examples or more in "
            "experts.yaml, or run `coe train`"
        )


def category_texts(registry: Registry) -> dict[str, tuple[str, ...]]:
    """The texts of every declared category by which an untrained one is classified; empty if there are too few."""
    return {
        category.name: (category.description, *category.examples) if len(category.examples) >= MIN_EXAMPLES else ()
        for category in registry.categories
    }


def read_plan(registry: Registry, artifact: Artifact) -> EffectivePlan:
    """A published plan under the declaration. Raises ArtifactError, with the remedy, if nothing of it is declared any
    more."""
    return effective_plan(read_published(artifact.folder, artifact.manifest.version), registry)


def overlays_in_use(settings: Settings, router: Router) -> Overlays:
    """The overlays in use; none if they were fitted to another router, which may have learned the same since. Raises
    ArtifactError if they are damaged."""
    artifact = ArtifactStore(settings.artifacts, OVERLAYS).current()
    if artifact is None:
        return Overlays()
    found = read_overlays(artifact)
    if not overlays_fit_router(artifact, found, router):
        _log.warning("%s; they stay unused", wrong_router_message(artifact, router))
        return Overlays()
    return Overlays(artifact.manifest.version, {one.tenant: one for one in found})


def read_overlays(artifact: Artifact) -> tuple[Overlay, ...]:
    """The overlays of an artifact. Raises ArtifactError for an artifact of another kind."""
    return tuple(Overlay.from_json(line) for line in (artifact.folder / OVERLAYS_FILE).read_bytes().splitlines())


def overlays_fit_router(artifact: Artifact, overlays: Sequence[Overlay], router: Router) -> bool:
    """Whether overlays were fitted to this router over its current categories."""
    unchanged = all(one.categories == router.categories for one in overlays)
    return artifact.manifest.data == router.version and unchanged


def wrong_router_message(artifact: Artifact, router: Router) -> str:
    """Error message for overlays that were fitted to another router, or to other categories of it."""
    made, version = artifact.manifest, router.version
    what = f"router {made.data}, not {version}" if made.data != version else f"other categories of router {version}"
    return f"overlays {made.version} are of {what}: `coe retrain` makes new ones"


def assignment_in_use(settings: Settings, registry: Registry, categories: tuple[str, ...]) -> EffectivePlan:
    """The plan in use over the router's categories, or the declared assignment before the first plan."""
    artifact = ArtifactStore(settings.artifacts, ASSIGNMENT).current()
    if artifact is None:
        return EffectivePlan(declared_assignment(registry, categories))
    found = read_plan(registry, artifact)
    return replace(found, assignment=found.assignment.over(categories))


_log = logging.getLogger("gateway")


def retrieval_in_use(settings: Settings, in_use: ActiveState, *, threads: Executor) -> Retrieval | None:
    """Retrieval from the declared store; None if no store is declared. Raises ArtifactError for a damaged gate."""
    index = in_use.index
    if index is None:
        return None
    gate, version = gate_in_use(settings, in_use, dimensions=index.encoder.dimensions)
    return Retrieval(
        in_use.registry.retrieval,
        retriever=index.store,
        encoder=index.encoder,
        router=in_use.router,
        threads=threads,
        gate=gate,
        version=version,
    )


def gate_in_use(settings: Settings, in_use: ActiveState, *, dimensions: int) -> tuple[Gate | None, str]:
    """The gate over the router's categories and the declared experts, and its version. None before the first one, or if
    it was fitted to other categories, another encoder, or has an outdated format. Raises ArtifactError if it is
    damaged."""
    artifact = ArtifactStore(settings.artifacts, GATE).current()
    if artifact is None:
        return None, ""
    try:
        gate = Gate.load(artifact.folder / GATE_FILE)
    except OutdatedGate as error:
        _log.warning("%s; it stays unused", error)
        return None, ""
    if set(gate.categories) != set(in_use.router.categories) or gate.dimensions != dimensions:
        _log.warning(
            "gate %s is of other categories or another encoder: `coe score --retrieval both` and `coe plan` make a new "
            "one; it stays unused",
            artifact.manifest.version,
        )
        return None, ""
    return gate.align(in_use.router.categories, in_use.registry.expert_names), artifact.manifest.version
