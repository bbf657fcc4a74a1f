"""The state that requests are served with. A reload replaces it as a whole; a request keeps the state it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coe.artifacts.kinds import ASSIGNMENT
from coe.mapping import Consequence
from coe.registry import Registry
from coe.routing.composition import Composition
from coe.runtime.active_state import DocumentIndex
from gateway.access import Access
from gateway.request.admission import Admission


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

    @property
    def plan(self) -> str:
        """The version of the plan in use; empty for the mapping declared in experts.yaml."""
        return self.versions.get(ASSIGNMENT) or ""

    @property
    def registry(self) -> Registry:
        """The parsed experts.yaml."""
        return self.composition.registry


class ServingState:
    """Holds the state for new requests, and the admission, which outlives a reload."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.admission = Admission(serving.registry.limits)
        self.leaving = False
        """Whether the process is about to end, so that no load balancer should send it requests."""
        self.reload_error: str | None = None
        """Why the latest reload failed; the last good state is still served."""

    def replace(self, serving: Serving) -> None:
        """Serve new requests with this state; requests in progress keep theirs."""
        self.serving = serving
        self.admission.limits = serving.registry.limits
        self.admission.grant()
