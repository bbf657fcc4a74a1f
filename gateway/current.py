"""What requests are served with now. A reload replaces it whole; a request reads it once and keeps what it read."""

from __future__ import annotations

from dataclasses import dataclass

from coe.composition import Composition
from coe.registry import Registry
from gateway.access import Access


@dataclass(frozen=True, slots=True)
class Serving:
    """One consistent state: the composition, and who may use it."""

    composition: Composition
    access: Access

    @property
    def registry(self) -> Registry:
        return self.composition.registry


class Current:
    """Holds the state that new requests are served with."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
