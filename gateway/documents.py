"""Who consults documents: the declared store, the encoder of its questions, and the gate, over what is in use."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import routers
from coe.artifacts import ArtifactStore
from coe.retrieval import DocumentStore, EncoderId, open_store
from coe.retrieval.consulting import Consultant
from coe.retrieval.gate import FILE, Gate
from coe.settings import Settings

if TYPE_CHECKING:
    from gateway.in_use import InUse
    from routers.documents import DocumentEncoder

GATE = "gate"
"""Kind of artifact, made by `coe plan`."""
_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class _Opened:
    url: str
    folder: Path
    store: DocumentStore
    encoder: DocumentEncoder


class Documents:
    """Holds the open store over reloads; a former one is closed with the process, since requests may be using it."""

    def __init__(self, settings: Settings, *, threads: Executor) -> None:
        self._settings = settings
        self._threads = threads
        self._opened: list[_Opened] = []

    def consultant(self, in_use: InUse) -> Consultant | None:
        """None where no store is declared. Raises ConfigError or ArtifactError."""
        declared = in_use.registry.retrieval
        if declared.store is None:
            return None
        opened = self._open(declared.store, in_use.folder)
        gate = gate_in_use(self._settings, in_use, dimensions=opened.encoder.dimensions)
        return Consultant(declared, retriever=opened.store, encoder=opened.encoder, threads=self._threads, gate=gate)

    def _open(self, url: str, folder: Path) -> _Opened:
        for opened in self._opened:
            if (opened.url, opened.folder) == (url, folder):
                return opened
        encoder = routers.load_document_encoder(folder)
        identity = EncoderId(encoder.digest, encoder.dimensions)
        store = open_store(url, base=self._settings.home, encoder=identity)
        self._opened.append(_Opened(url, folder, store, encoder))
        return self._opened[-1]

    async def aclose(self) -> None:
        """Close every store, when no request is left."""
        for opened in self._opened:
            await opened.store.aclose()


def gate_in_use(settings: Settings, in_use: InUse, *, dimensions: int) -> Gate | None:
    """The gate over the router's categories and the declared experts; None before the first one, or where it was fitted
    to other categories or another encoder. Raises ArtifactError where it is damaged."""
    artifact = ArtifactStore(settings.artifacts, GATE).current()
    if artifact is None:
        return None
    gate = Gate.load(artifact.folder / FILE)
    if set(gate.categories) != set(in_use.router.categories) or gate.dimensions != dimensions:
        _log.warning(
            "gate %s is of other categories or another encoder: `coe score --retrieval both` and `coe plan` make a new "
            "one; it stays unused",
            artifact.manifest.version,
        )
        return None
    return gate.over(in_use.router.categories, in_use.registry.expert_names)
