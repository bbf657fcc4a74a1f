"""The immutable state that requests are served with; a reload replaces it, and running requests keep the old one.

`SnapshotBuilder` builds a `Snapshot` from the `ActiveState` (declaration and artifacts in use), at the start and for
every reload, and holds the connections, threads and limits that all snapshots share. Experts that a reload does not
change keep their connections, breakers and measured latencies. Replaced experts and stores are closed after the timeout
of the last request that may use them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from coe.artifacts.active_state import ActiveState, DocumentIndex, retrieval_in_use
from coe.artifacts.kinds import ASSIGNMENT, GATE
from coe.artifacts.store import ArtifactStore
from coe.experts import ExpertLoader, ReplicatedExpert, build_experts
from coe.experts.http.client import Client
from coe.planning.effective_plan import Consequence
from coe.recipes.factory import build_recipes
from coe.registry import Registry
from coe.retrieval.store import DocumentStore
from coe.routing.composition import Composition
from coe.routing.conversation import Affinity
from coe.settings import Settings
from gateway.access import Access, IssuedKeyWatch, Limiter, access_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that one request is served with: the composition, the access of API keys, and the document index."""

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


class SnapshotBuilder:
    """Builds the snapshots of a process, which share HTTP client, threads, issued API keys, usage of keys, and
    conversation affinity."""

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
        self._affinity = affinity
        self.issued = issued
        self.residency = residency
        self.experts: dict[str, ReplicatedExpert] = {}
        """The experts of the latest snapshot."""
        self._request_timeout = 0.0
        self._index: DocumentIndex | None = None
        self._retired: list[tuple[float, ReplicatedExpert | DocumentStore]] = []

    def build(self, in_use: ActiveState) -> Snapshot:
        """Build a snapshot. Raises ConfigError for a local expert that is not running, ArtifactError for a damaged
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
        snapshot = Snapshot(
            composition,
            self._access(composition),
            in_use.index,
            {**in_use.versions, GATE: gate},
            frozenset({GATE} if gate and not (retrieval and retrieval.gate) else ()),
            in_use.consequences,
        )
        # what the new snapshot does not use is closed once the requests in progress have reached their timeout
        due, in_service = time.monotonic() + self._request_timeout, set(experts.values())
        self._retired += [(due, expert) for expert in self.experts.values() if expert not in in_service]
        if self._index is not None and self._index is not in_use.index:
            self._retired.append((due, self._index.store))
        self.experts, self._index = experts, in_use.index
        self._request_timeout = registry.policy.timeout
        return snapshot

    def with_issued(self, snapshot: Snapshot) -> Snapshot:
        """This snapshot with the API keys that are issued now."""
        return replace(snapshot, access=self._access(snapshot.composition))

    def _access(self, composition: Composition) -> Access:
        self.issued.report_conflicts(composition.registry)
        return access_of(
            composition.registry,
            self._limiter,
            issued=self.issued.keys,
            routed=composition.routed_arms,
            host=self._settings.host,
        )

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
