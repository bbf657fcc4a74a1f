"""From what is in use to what serves requests: once at the start, and again for every reload."""

from __future__ import annotations

import time
from concurrent.futures import Executor

from coe.artifacts.store import ArtifactStore
from coe.experts import ReplicatedExpert, ResidencyHold, build_experts
from coe.experts.http.client import Client
from coe.retrieval import DocumentStore
from coe.routing.affinity import Affinity
from coe.routing.composition import Composition
from coe.runtime.active_state import GATE, OVERLAYS, ActiveState, retrieval_in_use
from coe.runtime.document_index import DocumentIndex
from coe.settings import Settings
from gateway.access import Limiter, access_of
from gateway.serving_state import Serving


class Wiring:
    """Holds what every state of a process shares: connections, threads, the use of API keys, and which expert each
    conversation is with. Experts that did not change go on with their breakers and measured times."""

    def __init__(
        self,
        settings: Settings,
        *,
        session: Client,
        threads: Executor,
        limiter: Limiter,
        affinity: Affinity,
        turns: ResidencyHold | None = None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._threads = threads
        self._limiter = limiter
        self._turns = turns
        self._affinity = affinity
        self.experts: dict[str, ReplicatedExpert] = {}
        """Those of the latest state."""
        self._timeout = 0.0
        self._index: DocumentIndex | None = None
        self._retired: list[tuple[float, ReplicatedExpert | DocumentStore]] = []

    def serving(self, in_use: ActiveState) -> Serving:
        """Raises ConfigError for a local expert that nobody started, ArtifactError for a damaged gate."""
        registry = in_use.registry
        experts = build_experts(
            registry, self._settings.served(), session=self._session, previous=self.experts, turns=self._turns
        )
        gate = ArtifactStore(self._settings.artifacts, GATE).in_use()
        consultant = retrieval_in_use(self._settings, in_use, threads=self._threads)
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=self._threads,
            confidence_threshold=in_use.confidence_threshold,
            affinity=self._affinity,
            overlays=in_use.overlays,
            consultant=consultant,
        )
        versions = {**in_use.versions, GATE: gate}
        used = {OVERLAYS: bool(in_use.overlays.version), GATE: bool(consultant and consultant.gate)}
        unused = frozenset(kind for kind, there in used.items() if versions.get(kind) and not there)
        access = access_of(registry, self._limiter, host=self._settings.host)
        serving = Serving(composition, access, in_use.index, versions, unused, in_use.consequences)
        self._go_over(experts, in_use.index)
        self._timeout = registry.policy.timeout
        return serving

    def _go_over(self, experts: dict[str, ReplicatedExpert], index: DocumentIndex | None) -> None:
        """Requests under way may use the former ones until their time is over."""
        due = time.monotonic() + self._timeout
        kept = set(experts.values())
        self._retired += [(due, expert) for expert in self.experts.values() if expert not in kept]
        if self._index is not None and self._index is not index:
            self._retired.append((due, self._index.store))
        self.experts, self._index = experts, index

    async def close_retired(self) -> None:
        """Close the experts and stores that no request can be using any more."""
        now = time.monotonic()
        due = [one for when, one in self._retired if when <= now]
        self._retired = [(when, one) for when, one in self._retired if when > now]
        for one in due:
            await one.aclose()

    async def aclose(self) -> None:
        """Close every expert and store, when no request is left."""
        index = () if self._index is None else (self._index.store,)
        for one in (*self.experts.values(), *index, *(one for _, one in self._retired)):
            await one.aclose()
