"""The immutable state that requests are served with; a reload replaces it, and running requests keep the old one.

`SnapshotBuilder` builds a `Snapshot` from the `ActiveState` (declaration and artifacts in use), at the start and for
every reload, and holds the connections, threads and limits that all snapshots share. Experts that a reload does not
change keep their breakers and measured latencies. A replaced document store is closed after the timeout of the last
request that may use it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from coe.artifacts.active_state import ActiveState, DocumentIndex, retrieval_in_use
from coe.artifacts.manifest import ASSIGNMENT, GATE
from coe.artifacts.store import ArtifactStore
from coe.experts import ExpertLoader, ReplicatedExpert, build_experts
from coe.experts.http.client import Client
from coe.planning.plan import Consequence
from coe.recipes.expert import build_recipes
from coe.registry import Registry
from coe.retrieval.store import DocumentStore
from coe.routing.composition import Composition
from coe.routing.conversation import Affinity
from coe.settings import Settings
from gateway.access.access import Access
from gateway.access.issued_keys import IssuedKeyWatch
from gateway.access.limits import Limiter


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


@dataclass(slots=True, eq=False, kw_only=True)
class SnapshotBuilder:
    """Builds the snapshots of a process, which share HTTP client, threads, issued API keys, usage of keys, and
    conversation affinity."""

    settings: Settings
    session: Client
    threads: Executor
    limiter: Limiter
    affinity: Affinity
    issued: IssuedKeyWatch
    residency: ExpertLoader | None = None
    experts: dict[str, ReplicatedExpert] = field(default_factory=dict)
    """The experts of the latest snapshot."""
    _request_timeout: float = 0.0
    _index: DocumentIndex | None = None
    _replaced: list[tuple[float, DocumentStore]] = field(default_factory=list)

    def build(self, in_use: ActiveState) -> Snapshot:
        """Build a snapshot. Raises ConfigError for a local expert that is not running, ArtifactError for a damaged
        gate."""
        registry = in_use.registry
        experts = build_experts(
            registry, self.settings.served(), session=self.session, previous=self.experts, residency=self.residency
        )
        gate = ArtifactStore(self.settings.artifacts, GATE).in_use()
        retrieval = retrieval_in_use(self.settings, in_use, threads=self.threads)
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=self.threads,
            confidence_threshold=in_use.confidence_threshold,
            affinity=self.affinity,
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
        if self._index is not None and self._index is not in_use.index:  # until the last request that searches it
            self._replaced.append((time.monotonic() + self._request_timeout, self._index.store))
        self.experts, self._index = experts, in_use.index
        self._request_timeout = registry.policy.timeout
        return snapshot

    def with_issued(self, snapshot: Snapshot) -> Snapshot:
        """This snapshot with the API keys that are issued now."""
        return replace(snapshot, access=self._access(snapshot.composition))

    def _access(self, composition: Composition) -> Access:
        return Access(
            composition.registry,
            self.limiter,
            issued=self.issued.keys,
            routed=composition.routed_arms,
            host=self.settings.host,
        )

    async def close_replaced(self) -> None:
        """Close the document stores that no request can use any more."""
        while self._replaced and self._replaced[0][0] <= time.monotonic():
            await self._replaced.pop(0)[1].aclose()

    async def aclose(self) -> None:
        """Close every document store. No request may be in progress."""
        if self._index is not None:
            await self._index.store.aclose()
        for _, store in self._replaced:
            await store.aclose()
