"""What requests are served with now. A reload replaces it whole; a request reads it once and keeps what it read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coe.mapping import Consequence
from coe.registry import Registry
from coe.routing.composition import Composition
from coe.runtime.document_index import DocumentIndex
from gateway.access import Access
from gateway.request.admission import Admission


@dataclass(frozen=True, slots=True)
class Serving:
    """One consistent state: the composition, who may use it, and the documents."""

    composition: Composition
    access: Access
    index: DocumentIndex | None = None
    """The document store; None where none is declared."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """By kind of artifact which was in use when this was made, None for none."""
    unused: frozenset[str] = frozenset()
    """The kinds of which it fits nothing else that is in use, so that it does without."""
    consequences: tuple[Consequence, ...] = ()
    """The differences of the declaration from the plan in use."""

    @property
    def plan(self) -> str:
        """The version of the plan that is served with; empty where it is the declared mapping."""
        return self.versions.get("assignment") or ""

    @property
    def registry(self) -> Registry:
        return self.composition.registry


class ServingState:
    """Holds the state that new requests are served with, and what outlives its replacement: the permits."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.admission = Admission(serving.registry.limits)
        self.leaving = False
        """The process is about to end: no balancer should send it work."""
        self.reload_error: str | None = None
        """Why what is declared or promoted now could not be taken over, so that the last good state serves on."""

    def replace(self, serving: Serving) -> None:
        """New requests are served with this; those under way keep what they began with."""
        self.serving = serving
        self.admission.limits = serving.registry.limits
        self.admission.grant()
