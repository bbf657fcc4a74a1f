"""Loads the active state: the declaration, and the promoted router, overlays, assignment, gate and the document store.

The gateway loads it at start and on reload, jobs load it at their start. `check_active_state` checks it without loading
a router. `preload_router` loads the router alone, before a parent process forks its workers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import routers
from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS, ROUTER
from coe.artifacts.manifest import MANIFEST, Artifact, noting, read_manifest
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL, Router
from coe.errors import ArtifactError, ConfigError
from coe.experts.recipes.policy_file import NO_POLICIES, ArmPolicies
from coe.learning.monitoring.loss_bounds import LOSS_BOUNDS_FILE, read_broken
from coe.mapping import Assignment, Consequence, EffectivePlan, effective_plan, read_published
from coe.mapping.problem import declared_assignment
from coe.registry import Category, Registry, load, load_text
from coe.registry.yaml_source import read_text
from coe.retrieval import DocumentStore, EncoderId, open_store
from coe.retrieval.gate import GATE_FILE, Gate, OutdatedGate
from coe.retrieval.ingest.indexing import TokenizingEncoder, encoder_id
from coe.retrieval.retrieval import Retrieval
from coe.routing.classification import OVERLAYS_FILE, Overlay, Overlays
from coe.runtime.api_keys import with_admin_key
from coe.runtime.kept_state import KeptState
from coe.settings import Settings

MIN_EXAMPLES = 2
"""Examples by which a category works without training."""
PACKAGED_ROUTER = Path(routers.__file__).parent / "starter" / "router"
"""The starter router in an installation from a wheel. `scripts/wheel` trains it; a checkout has none."""
_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class DocumentIndex:
    """A document store with the encoder that it was opened for."""

    store: DocumentStore
    encoder: TokenizingEncoder


def open_index(settings: Settings, registry: Registry, folder: Path, *, threads: int = 1) -> DocumentIndex:
    """The store, and the encoder of the router in `folder`. Reads the encoder's files and connects to nothing. Raises
    ConfigError if no store is declared, ArtifactError for a damaged router."""
    if registry.retrieval.store is None:
        raise ConfigError(
            f"{settings.config}: no document store is declared; add: retrieval: {{store: 'lancedb:///documents'}}"
        )
    encoder = routers.load_document_encoder(folder, threads=threads)
    return DocumentIndex(open_store(registry.retrieval.store, base=settings.home, encoder=encoder_id(encoder)), encoder)


@dataclass(frozen=True, slots=True)
class LoadedRouter:
    """A router, with the folder and categories that it was loaded for. It can be used while both are in use."""

    router: Router
    folder: Path
    categories: tuple[Category, ...]
    """The declared categories, which the router is adapted to."""


def preload_router(settings: Settings) -> LoadedRouter:
    """Load the router in use. Raises ConfigError or ArtifactError with the remedy."""
    registry, artifact = check_router(settings)
    return LoadedRouter(load_router(registry, artifact), artifact.folder, registry.categories)


@dataclass(frozen=True, slots=True)
class ActiveState:
    """A declaration with the artifacts in use.

    `confidence_threshold` is the confidence below which training found the router's predictions unreliable. `folder` is
    that of the router's artifact.
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
    policies: ArmPolicies = NO_POLICIES
    """The fitted policies of the recipes' arms in the plan, over the router's categories."""
    declaration: str = field(default="", repr=False)
    """The text of experts.yaml that was read; empty if unknown."""
    kept: KeptState | None = None
    """The kept state that it was read from; None if it was read from the files in use."""

    @property
    def loaded_router(self) -> LoadedRouter:
        return LoadedRouter(self.router, self.folder, self.registry.categories)


def load_active_state(
    settings: Settings,
    previous: ActiveState | None = None,
    *,
    packaged: bool = False,
    preloaded: LoadedRouter | None = None,
    kept: KeptState | None = None,
    damaged: dict[str, str] | None = None,
) -> ActiveState:
    """Load the active state. Raises ConfigError or ArtifactError with the remedy.

    The router of `previous`, or else `preloaded`, is reused if its artifact and categories are in use. `packaged` is
    that of `check_router`. With `kept`, that state is loaded instead of the files in use. With `damaged`, a plan or
    overlays that cannot be read count as not in use, and `damaged` gets the problem by kind.
    """
    if kept is None:
        declaration = read_text(settings.config)
        registry = with_admin_key(load_text(declaration, settings.config.name, environ=settings.environ), settings)
        artifact = _checked_router(settings, registry, packaged=packaged, is_reload=previous is not None)
    else:
        declaration, registry, artifact = kept.declaration, kept.registry(settings), kept.router()
    if previous is not None and previous.folder != artifact.folder:
        previous = None  # another router: nothing is shared with it
    loaded = preloaded if previous is None else previous.loaded_router
    if loaded is not None and (loaded.folder, loaded.categories) == (artifact.folder, registry.categories):
        router = loaded.router
    else:
        router = load_router(registry, artifact)
    versions = {kind: version_in_use(settings, kind, kept) for kind in (ASSIGNMENT, OVERLAYS)}
    planned, overlays = EffectivePlan(declared_assignment(registry, router.categories)), Overlays()
    with noting(damaged, ASSIGNMENT):
        planned = assignment_in_use(settings, registry, router.categories, kept)
    assignment = _of_encoder(planned.assignment, artifact)
    registry = registry.with_proposed(planned.policies.steps)
    with noting(damaged, OVERLAYS):
        overlays = overlays_in_use(settings, router, kept)
    if registry.retrieval.store is None:
        index = None
    elif previous is not None and previous.index and previous.registry.retrieval == registry.retrieval:
        index = previous.index
    else:
        index = open_index(settings, registry, artifact.folder)
    return ActiveState(
        registry,
        router,
        assignment,
        artifact.manifest.metric("confidence_threshold") or 0.0,
        artifact.folder,
        overlays,
        index,
        {ROUTER: artifact.manifest.version, **versions},
        planned.consequences,
        policies_in_use(settings, registry, planned),
        declaration,
        kept,
    )


def check_active_state(settings: Settings) -> tuple[Registry, Artifact]:
    """The declaration and the router's artifact, checked for the start of a gateway with the plan and the document
    store, without loading anything. Raises ConfigError or ArtifactError with the remedy."""
    registry, artifact = check_router(settings, packaged=True)
    assignment_in_use(settings, registry, registry.category_names)
    if registry.retrieval.store is not None:  # connects to nothing; the address and the library are checked
        open_store(registry.retrieval.store, base=settings.home, encoder=EncoderId("", 0))
    return registry, artifact


def check_router(settings: Settings, *, packaged: bool = False, is_reload: bool = False) -> tuple[Registry, Artifact]:
    """The declaration and the router's artifact, checked. Raises ConfigError or ArtifactError with the remedy.

    If none was trained, that is the router that this version ships. With `packaged` it comes into use: only the start
    of a gateway or of a learning round, which may have a machine of its own, does this. Other commands read it where it
    is, and change nothing. A reload needs a router in use: where artifacts are shared, it would undo that there is none
    on the other machines.
    """
    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    return registry, _checked_router(settings, registry, packaged=packaged, is_reload=is_reload)


def _checked_router(settings: Settings, registry: Registry, *, packaged: bool, is_reload: bool) -> Artifact:
    """The router's artifact for a declaration, as `check_router` describes."""
    store = ArtifactStore(settings.artifacts, ROUTER)
    if packaged and (shipped := packaged_router(registry)) is not None and store.may_adopt_packaged():
        check_fit(registry, shipped)
        routers.check(shipped.folder)
        store.adopt(shipped.folder, why="the router that this version of CoE ships, until one is trained")
    artifact = store.current()
    if artifact is None and not is_reload:
        artifact = packaged_router(registry)
    if artifact is None:
        raise ArtifactError(
            f"{settings.artifacts}: no router is trained yet; run `coe train`, or `coe up`, which puts one into use"
        )
    check_fit(registry, artifact)
    routers.check(artifact.folder)
    return artifact


def packaged_router(registry: Registry) -> Artifact | None:
    """Return the packaged router, not yet verified; None without one, or if experts.yaml declares other data or
    another encoder.

    It was trained with the default encoder on the starter prompts. `check_fit` decides whether its categories fit.
    """
    declared = registry.router
    other = declared.training_data or declared.extra_training_data or declared.encoder != routers.DEFAULT_ENCODER
    if other or not (PACKAGED_ROUTER / MANIFEST).is_file():
        return None
    return Artifact(PACKAGED_ROUTER, read_manifest(PACKAGED_ROUTER))


def load_router(registry: Registry, artifact: Artifact) -> Router:
    """The trained router over the declared categories. Raises ArtifactError if it is damaged."""
    return routers.load(artifact.folder, declared=category_texts(registry), version=artifact.manifest.version)


def check_fit(registry: Registry, artifact: Artifact) -> None:
    """Raises ArtifactError for a router without any declared category, ConfigError for a new category with too few
    examples."""
    packaged = artifact.folder == PACKAGED_ROUTER
    router = "the packaged router" if packaged else f"router {artifact.manifest.version}"
    trained = set(artifact.manifest.categories)
    declared = set(registry.category_names) - {GENERAL}
    if declared and not declared & trained:
        known = ", ".join(sorted(trained))
        raise ArtifactError(
            f"{router} knows none of the categories in experts.yaml (it knows {known}); run `coe train`"
        )
    if without_examples := [registry.categories[index].name for index in untrained_categories(registry, trained)]:
        raise ConfigError(
            f"{router} was not trained on {', '.join(without_examples)}: give each {MIN_EXAMPLES} examples or more in "
            "experts.yaml, or run `coe train`"
        )


def untrained_categories(registry: Registry, trained: Collection[str]) -> dict[int, str]:
    """Return the index of each category that a router of the `trained` ones cannot classify, and the problem."""
    return {
        index: f"category {one.name!r} is new to the router in use and has {len(one.examples)} examples; give it "
        f"{MIN_EXAMPLES} or more, or run `coe train`"
        for index, one in enumerate(registry.categories)
        if one.name not in (GENERAL, *trained) and len(one.examples) < MIN_EXAMPLES
    }


def category_texts(registry: Registry) -> dict[str, tuple[str, ...]]:
    """The texts of every declared category by which an untrained one is classified; empty if there are too few."""
    return {
        category.name: (category.description, *category.examples) if len(category.examples) >= MIN_EXAMPLES else ()
        for category in registry.categories
    }


def read_plan(registry: Registry, artifact: Artifact) -> EffectivePlan:
    """A published plan under the declaration. Raises ArtifactError, with the remedy, if nothing of it is declared any
    more."""
    published = read_published(artifact.folder, artifact.manifest.version)
    return effective_plan(published, published.declaration(registry))


def encoder_digest(router: Artifact) -> str:
    """Return the digest of a router's encoder."""
    from routers.cascade import NETWORK

    return router.manifest.files.get(NETWORK, "")


def _of_encoder(assignment: Assignment, router: Artifact) -> Assignment:
    """Return the assignment, without its residual if that was fitted to another encoder than the router's."""
    if assignment.residual is None or assignment.residual.encoder == encoder_digest(router):
        return assignment
    _log.warning("the plan's residual is of another encoder than the router's and stays unused; run `coe plan` again")
    return replace(assignment, residual=None)


def version_in_use(settings: Settings, kind: str, kept: KeptState | None = None) -> str | None:
    """The version of a kind that is in use, or that a kept state had in use; None for none."""
    return ArtifactStore(settings.artifacts, kind).in_use() if kept is None else kept.versions.get(kind)


def artifact_in_use(settings: Settings, kind: str, kept: KeptState | None = None) -> Artifact | None:
    """Return the artifact in use of a kind, verified; None for none. Raises ArtifactError if it is damaged."""
    return ArtifactStore(settings.artifacts, kind).current() if kept is None else kept.artifact(kind)


def overlays_in_use(settings: Settings, router: Router, kept: KeptState | None = None) -> Overlays:
    """The overlays in use; none if they were fitted to another router. Raises
    ArtifactError if they are damaged."""
    artifact = artifact_in_use(settings, OVERLAYS, kept)
    if artifact is None:
        return Overlays()
    found = read_overlays(artifact)
    if problem := overlays_problem(artifact, found, router):
        _log.warning("%s; they stay unused", problem)
        return Overlays()
    return Overlays(artifact.manifest.version, {one.tenant: one for one in found})


def read_overlays(artifact: Artifact) -> tuple[Overlay, ...]:
    """The overlays of an artifact. Raises ArtifactError for an artifact of another kind."""
    return tuple(Overlay.from_json(line) for line in (artifact.folder / OVERLAYS_FILE).read_bytes().splitlines())


def overlays_problem(artifact: Artifact, overlays: Sequence[Overlay], router: Router) -> str:
    """Return the reason why overlays do not fit this router and its categories; empty if they do."""
    made, version = artifact.manifest, router.version
    if made.data == version and all(one.categories == router.categories for one in overlays):
        return ""
    what = f"router {made.data}, not {version}" if made.data != version else f"other categories of router {version}"
    return f"overlays {made.version} are of {what}: `coe retrain` makes new ones"


def assignment_in_use(
    settings: Settings, registry: Registry, categories: tuple[str, ...], kept: KeptState | None = None
) -> EffectivePlan:
    """The plan in use over the router's categories, or the declared assignment before the first plan."""
    artifact = artifact_in_use(settings, ASSIGNMENT, kept)
    if artifact is None:
        return EffectivePlan(declared_assignment(registry, categories))
    return read_plan(registry, artifact).over(categories)


def policies_in_use(settings: Settings, registry: Registry, plan: EffectivePlan) -> ArmPolicies:
    """The plan's policies; a recipe that broke its loss bound calls all its steps."""
    broken = read_broken(settings.artifacts / LOSS_BOUNDS_FILE, plan.policies.version, registry)
    return plan.policies.without_early_stops(broken) if broken else plan.policies


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
    artifact = artifact_in_use(settings, GATE, in_use.kept)
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
