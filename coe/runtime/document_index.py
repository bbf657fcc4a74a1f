"""Opens the document store that experts.yaml declares, with the encoder of the router in use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import routers
from coe.errors import ConfigError
from coe.registry import Registry
from coe.retrieval import DocumentStore, EncoderId, open_store
from coe.retrieval.ingest.indexing import TokenizingEncoder, encoder_id
from coe.settings import Settings


@dataclass(frozen=True, slots=True)
class DocumentIndex:
    """A document store with the encoder that it was opened for."""

    store: DocumentStore
    encoder: TokenizingEncoder


def open_index(settings: Settings, registry: Registry, folder: Path, *, threads: int = 1) -> DocumentIndex:
    """The store, and the encoder of the router in `folder`. Reads the encoder's files and connects to nothing. Raises
    ConfigError if no store is declared, ArtifactError for a damaged router."""
    if registry.retrieval.store is None:
        raise ConfigError(
            f"{settings.config}: no document store is declared; add: retrieval: {{store: 'lancedb:///documents'}}"
        )
    encoder = routers.load_document_encoder(folder, threads=threads)
    return DocumentIndex(open_store(registry.retrieval.store, base=settings.home, encoder=encoder_id(encoder)), encoder)


def check_store(settings: Settings, registry: Registry) -> None:
    """Raises ConfigError for an invalid address, or if its library is missing."""
    if registry.retrieval.store is not None:
        open_store(registry.retrieval.store, base=settings.home, encoder=EncoderId("", 0))
