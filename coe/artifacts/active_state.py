"""Loads the active state: the declaration, and the promoted router, assignment, gate and the document store.

The gateway loads it at start and on reload, jobs load it at their start. `check_active_state` checks it without loading
a router. `preload_router` loads the router alone, before a parent process forks its workers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import routers
from coe.artifacts.api_keys import with_admin_key
from coe.artifacts.manifest import ASSIGNMENT, GATE, MANIFEST, ROUTER, Artifact, noting, read_manifest
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL, Router
from coe.errors import ArtifactError, ConfigError
from coe.planning.assignment import Assignment
from coe.planning.plan import Consequence, EffectivePlan, Plan, effective_plan
from coe.planning.problem import declared_assignment
from coe.recipes.policy import NO_POLICIES, ArmPolicies
from coe.registry import Category, Registry, load
from coe.retrieval.gate import GATE_FILE, Gate
from coe.retrieval.indexing import TokenizingEncoder, encoder_id
from coe.retrieval.insertion import EncoderId
from coe.retrieval.retrieval import Retrieval
from coe.retrieval.store import DocumentStore, open_store
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
    index: DocumentIndex | None = None
    """The declared document store; None without one."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """The version that was read of each kind of artifact except the gate, None for none."""
    consequences: tuple[Consequence, ...] = ()
    """The differences of the declaration from the plan in use."""
    policies: ArmPolicies = NO_POLICIES
    """The fitted policies of the recipes' arms in the plan, over the router's categories."""

    @property
    def loaded_router(self) -> LoadedRouter:
        return LoadedRouter(self.router, self.folder, self.registry.categories)


def load_active_state(
    settings: Settings,
    previous: ActiveState | None = None,
    *,
    packaged: bool = False,
    preloaded: LoadedRouter | None = None,
    damaged: dict[str, str] | None = None,
) -> ActiveState:
    """Load the active state. Raises ConfigError or ArtifactError with the remedy.

    The router of `previous`, or else `preloaded`, is reused if its artifact and categories are in use. `packaged` is
    that of `check_router`. With `damaged`, a plan that cannot be read counts as not in use, and `damaged` gets the
    problem by kind.
    """
    registry, artifact = check_router(settings, packaged=packaged, is_reload=previous is not None)
    if previous is not None and previous.folder != artifact.folder:
        previous = None  # another router: nothing is shared with it
    loaded = preloaded if previous is None else previous.loaded_router
    if loaded is not None and (loaded.folder, loaded.categories) == (artifact.folder, registry.categories):
        router = loaded.router
    else:
        router = load_router(registry, artifact)
    version = ArtifactStore(settings.artifacts, ASSIGNMENT).in_use()
    planned = EffectivePlan(declared_assignment(registry, router.categories))
    with noting(damaged, ASSIGNMENT):
        planned = assignment_in_use(settings, registry, router.categories)
    assignment = _of_encoder(planned.assignment, artifact)
    registry = registry.with_proposed(planned.policies.steps)
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
        index,
        {ROUTER: artifact.manifest.version, ASSIGNMENT: version},
        planned.consequences,
        planned.policies,
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
    return registry, artifact


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


def read_plan(registry: Registry, artifact: Artifact, categories: tuple[str, ...] = ()) -> EffectivePlan:
    """A published plan under the declaration, over `categories` in their order. Raises ArtifactError, with the remedy,
    if nothing of it is declared any more."""
    plan = Plan.read(artifact.folder)
    return effective_plan(plan, registry.with_proposed(plan.policies.steps), categories)


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


def assignment_in_use(settings: Settings, registry: Registry, categories: tuple[str, ...]) -> EffectivePlan:
    """The plan in use over the router's categories, or the declared assignment before the first plan."""
    artifact = ArtifactStore(settings.artifacts, ASSIGNMENT).current()
    if artifact is None:
        return EffectivePlan(declared_assignment(registry, categories))
    return read_plan(registry, artifact, categories)


def retrieval_in_use(settings: Settings, in_use: ActiveState, *, threads: Executor) -> Retrieval | None:
    """Retrieval from the declared store; None if no store is declared. Raises ArtifactError for a damaged gate."""
    index = in_use.index
    if index is None:
        return None
    return Retrieval(
        in_use.registry.retrieval,
        retriever=index.store,
        encoder=index.encoder,
        router=in_use.router,
        threads=threads,
        gate=gate_in_use(settings, in_use, dimensions=index.encoder.dimensions),
    )


def gate_in_use(settings: Settings, in_use: ActiveState, *, dimensions: int) -> Gate | None:
    """The gate over the router's categories and the declared experts. None before the first one, or if it was fitted to
    other categories or another encoder. Raises ArtifactError if it is damaged."""
    artifact = ArtifactStore(settings.artifacts, GATE).current()
    if artifact is None:
        return None
    gate = Gate.load(artifact.folder / GATE_FILE)
    if set(gate.categories) != set(in_use.router.categories) or gate.dimensions != dimensions:
        _log.warning(
            "gate %s is of other categories or another encoder: `coe score --retrieval both` and `coe plan` make a new "
            "one; it stays unused",
            artifact.manifest.version,
        )
        return None
    return gate.align(in_use.router.categories, in_use.registry.expert_names)
