"""From what is in use to what serves requests: once at the start, and again for every reload."""

from __future__ import annotations

import time
from concurrent.futures import Executor

from coe.affinity import Affinity
from coe.composition import Composition
from coe.experts import ReplicatedExpert, build_experts
from coe.experts.client import Client
from coe.settings import Settings
from gateway.access import Limiter, access_of
from gateway.current import Serving
from gateway.documents import Documents
from gateway.in_use import InUse


class Assembly:
    """Holds what every state of a process shares: connections, threads, the use of API keys, and which expert each
    conversation is with. Experts that did not change go on with their breakers and measured times."""

    def __init__(self, settings: Settings, *, session: Client, threads: Executor, limiter: Limiter) -> None:
        self._settings = settings
        self._session = session
        self._threads = threads
        self._limiter = limiter
        self._affinity = Affinity()
        self._documents = Documents(settings, threads=threads)
        self.experts: dict[str, ReplicatedExpert] = {}
        """Those of the latest state."""
        self._timeout = 0.0
        self._retired: list[tuple[float, ReplicatedExpert]] = []

    def serving(self, in_use: InUse) -> Serving:
        """Raises ConfigError for a local expert that nobody started, or what is wrong with the store or the gate."""
        registry = in_use.registry
        experts = build_experts(registry, self._settings.served(), session=self._session, previous=self.experts)
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=self._threads,
            doubt=in_use.doubt,
            affinity=self._affinity,
            overlays=in_use.overlays,
            consultant=self._documents.consultant(in_use),
        )
        serving = Serving(composition, access_of(registry, self._limiter))
        self._go_over(experts)
        self._timeout = registry.policy.timeout
        return serving

    def _go_over(self, experts: dict[str, ReplicatedExpert]) -> None:
        """Requests under way may use the former ones until their time is over."""
        due = time.monotonic() + self._timeout
        kept = set(experts.values())
        self._retired += [(due, expert) for expert in self.experts.values() if expert not in kept]
        self.experts = experts

    async def close_retired(self) -> None:
        """Close the experts that no request can be using any more."""
        now = time.monotonic()
        due = [expert for when, expert in self._retired if when <= now]
        self._retired = [(when, expert) for when, expert in self._retired if when > now]
        for expert in due:
            await expert.aclose()

    async def aclose(self) -> None:
        """Close every expert and store, when no request is left."""
        for expert in (*self.experts.values(), *(expert for _, expert in self._retired)):
            await expert.aclose()
        await self._documents.aclose()
