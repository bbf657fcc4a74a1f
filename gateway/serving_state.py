"""The immutable state that requests are served with; a reload replaces it, and running requests keep the old one.

`Serving` is one such state. `ServingState` holds the current one. `Wiring` builds a `Serving` from the `ActiveState`
(declaration and artifacts in use), at the start and for every reload, and holds the connections, threads and limits
that all states share. Experts that a reload does not change keep their connections, breakers and measured latencies.
Replaced experts and stores are closed after the timeout of the last request that may use them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS
from coe.experts import ExpertLoader, ReplicatedExpert, build_experts
from coe.experts.http.client import Client
from coe.experts.recipes.factory import build_recipes
from coe.experts.recipes.policy_file import NO_POLICIES, ArmPolicies
from coe.mapping import Consequence
from coe.registry import Registry
from coe.retrieval.store import DocumentStore
from coe.routing.composition import Composition
from coe.routing.conversation import Affinity
from coe.runtime.active_state import ActiveState, DocumentIndex, retrieval_in_use, version_in_use
from coe.settings import Settings
from gateway.access import Access, IssuedKeyWatch, Limiter, access_of
from gateway.cohort import Cohort
from gateway.http.known_heads import KnownHeads
from gateway.request.admission import Admission
from gateway.request.answers import AnswerPool

_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Serving:
    """One consistent state: the composition, the access of API keys, and the document index."""

    composition: Composition
    access: Access
    index: DocumentIndex | None = None
    """The document index; None if none is declared."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """The version in use of each kind of artifact, None for none."""
    unused: frozenset[str] = frozenset()
    """Kinds whose version in use does not fit the other artifacts, so that it is ignored."""
    consequences: tuple[Consequence, ...] = ()
    """Differences between experts.yaml and the plan in use."""
    policies: ArmPolicies = NO_POLICIES
    """The fitted policies of the recipes' arms."""
    registry: Registry = field(init=False)
    """The parsed experts.yaml."""
    plan: str = field(init=False)
    """The version of the plan in use; empty for the mapping declared in experts.yaml."""
    token: object = field(init=False)
    """Identifies this state. A value kept with this token is valid while the state of the same token serves. Unlike a
    reference to the state, the token does not keep a replaced state in memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", self.composition.registry)
        object.__setattr__(self, "plan", self.versions.get(ASSIGNMENT) or "")
        object.__setattr__(self, "token", object())


class ServingState:
    """Holds the state for new requests, and what outlives a reload: the admission, the memory for answers, the cohort
    of ready requests, and the known heads."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.admission = Admission(serving.registry.limits)
        self.answers = AnswerPool()
        self.cohort = Cohort()
        self.heads = KnownHeads()
        self.leaving = False
        """True if the process is shutting down, so that no load balancer should send it requests."""
        self.reload_error: str | None = None
        """Cause of the latest failed reload; the last good state stays in service."""

    def replace(self, serving: Serving) -> None:
        """Serve new requests with this state; requests in progress keep theirs."""
        self.serving = serving
        self.heads.clear()  # so that revoked API keys do not stay in memory
        self.admission.limits = serving.registry.limits
        self.admission.grant()


class Wiring:
    """Shared by all states of a process: HTTP client, threads, issued API keys, usage of keys, and conversation
    affinity."""

    def __init__(
        self,
        settings: Settings,
        *,
        session: Client,
        threads: Executor,
        limiter: Limiter,
        affinity: Affinity,
        issued: IssuedKeyWatch,
        residency: ExpertLoader | None = None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._threads = threads
        self._limiter = limiter
        self.issued = issued
        self.residency = residency
        self._affinity = affinity
        self.experts: dict[str, ReplicatedExpert] = {}
        """The experts of the latest state."""
        self._request_timeout = 0.0
        self._index: DocumentIndex | None = None
        self._broken_bounds = frozenset[str]()
        self._retired: list[tuple[float, ReplicatedExpert | DocumentStore]] = []

    def serving(self, in_use: ActiveState) -> Serving:
        """Build a state. Raises ConfigError for a local expert that is not running, ArtifactError for a damaged
        gate."""
        registry = in_use.registry
        endpoints = self._settings.served() if in_use.kept is None else in_use.kept.endpoints
        experts = build_experts(
            registry, endpoints, session=self._session, previous=self.experts, residency=self.residency
        )
        gate = version_in_use(self._settings, GATE, in_use.kept)
        retrieval = retrieval_in_use(self._settings, in_use, threads=self._threads)
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=self._threads,
            confidence_threshold=in_use.confidence_threshold,
            affinity=self._affinity,
            overlays=in_use.overlays,
            retrieval=retrieval,
            recipes=build_recipes(
                registry, experts, categories=len(in_use.router.categories), policies=in_use.policies.by_arm
            ),
        )
        versions = {**in_use.versions, GATE: gate}
        loaded = {OVERLAYS: bool(in_use.overlays.version), GATE: bool(retrieval and retrieval.gate)}
        unused = frozenset(kind for kind, is_loaded in loaded.items() if versions.get(kind) and not is_loaded)
        serving = Serving(
            composition,
            self._access(composition),
            in_use.index,
            versions,
            unused,
            in_use.consequences,
            in_use.policies,
        )
        for recipe in sorted(in_use.policies.broken - self._broken_bounds):
            _log.warning(
                "audits of recipe %r differ more often than its max_loss allows, so it now calls all its steps; run "
                "`coe score` with new probes and `coe plan`, or raise max_loss",
                recipe,
            )
        self._broken_bounds = in_use.policies.broken
        self._retire_replaced(experts, in_use.index)
        self._request_timeout = registry.policy.timeout
        return serving

    def with_issued(self, serving: Serving) -> Serving:
        """This state with the API keys that are issued now."""
        return replace(serving, access=self._access(serving.composition))

    def _access(self, composition: Composition) -> Access:
        self.issued.report_conflicts(composition.registry)
        return access_of(
            composition.registry,
            self._limiter,
            issued=self.issued.keys,
            routed=composition.routed_arms,
            host=self._settings.host,
        )

    def _retire_replaced(self, experts: dict[str, ReplicatedExpert], index: DocumentIndex | None) -> None:
        """Close what the new state does not use once the requests in progress have reached their timeout."""
        due = time.monotonic() + self._request_timeout
        kept = set(experts.values())
        self._retired += [(due, expert) for expert in self.experts.values() if expert not in kept]
        if self._index is not None and self._index is not index:
            self._retired.append((due, self._index.store))
        self.experts, self._index = experts, index

    async def close_retired(self) -> None:
        """Close the experts and stores that no request can use any more."""
        now = time.monotonic()
        due = [part for when, part in self._retired if when <= now]
        self._retired = [(when, part) for when, part in self._retired if when > now]
        for part in due:
            await part.aclose()

    async def aclose(self) -> None:
        """Close every expert and store. No request may be in progress."""
        index = () if self._index is None else (self._index.store,)
        for part in (*self.experts.values(), *index, *(part for _, part in self._retired)):
            await part.aclose()
