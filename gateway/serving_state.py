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

from coe.artifacts.active_state import ActiveState, DocumentIndex, retrieval_in_use
from coe.artifacts.kinds import ASSIGNMENT, GATE
from coe.artifacts.store import ArtifactStore
from coe.experts import ExpertLoader, ReplicatedExpert, build_experts
from coe.experts.http.client import Client
from coe.planning import Consequence
from coe.recipes.factory import build_recipes
from coe.registry import Registry
from coe.retrieval.store import DocumentStore
from coe.routing.composition import Composition
from coe.routing.conversation import Affinity
from coe.settings import Settings
from gateway.access import Access, IssuedKeyWatch, Limiter, access_of
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
    registry: Registry = field(init=False)
    """The parsed experts.yaml."""
    plan: str = field(init=False)
    """The version of the plan in use; empty for the mapping declared in experts.yaml."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", self.composition.registry)
        object.__setattr__(self, "plan", self.versions.get(ASSIGNMENT) or "")


class ServingState:
    """Holds the state for new requests, and what outlives a reload: the admission and the memory for answers."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.admission = Admission(serving.registry.limits)
        self.answers = AnswerPool()
        self.leaving = False
        """True if the process is shutting down, so that no load balancer should send it requests."""
        self.reload_error: str | None = None
        """Cause of the latest failed reload; the last good state stays in service."""

    def replace(self, serving: Serving) -> None:
        """Serve new requests with this state; requests in progress keep theirs."""
        self.serving = serving
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
        self._retired: list[tuple[float, ReplicatedExpert | DocumentStore]] = []

    def serving(self, in_use: ActiveState) -> Serving:
        """Build a state. Raises ConfigError for a local expert that is not running, ArtifactError for a damaged
        gate."""
        registry = in_use.registry
        experts = build_experts(
            registry, self._settings.served(), session=self._session, previous=self.experts, residency=self.residency
        )
        gate = ArtifactStore(self._settings.artifacts, GATE).in_use()
        retrieval = retrieval_in_use(self._settings, in_use, threads=self._threads)
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=self._threads,
            confidence_threshold=in_use.confidence_threshold,
            affinity=self._affinity,
            retrieval=retrieval,
            recipes=build_recipes(
                registry, experts, categories=len(in_use.router.categories), policies=in_use.policies.by_arm
            ),
        )
        versions = {**in_use.versions, GATE: gate}
        unused = frozenset({GATE} if gate and not (retrieval and retrieval.gate) else ())
        serving = Serving(
            composition,
            self._access(composition),
            in_use.index,
            versions,
            unused,
            in_use.consequences,
        )
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
