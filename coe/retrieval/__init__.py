"""Retrieval: document stores behind one Protocol, ingestion, and the gate that decides when passages are used."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from coe.errors import ConfigError, pip_install
from coe.retrieval.passages import DocumentStore, EncoderId, Passage, Retriever

__all__ = ["DocumentStore", "EncoderId", "Passage", "Retriever", "open_store"]

URL_FORMS = (
    "write lancedb:///FOLDER (relative to the state folder), lancedb:////absolute/folder, or redis://host:6379/0"
)


def open_store(url: str, *, base: Path, encoder: EncoderId) -> DocumentStore:
    """Open the store at `url` for vectors of `encoder`; relative folders start at `base`.

    Connects lazily, so that an unavailable server delays nothing. Raises ConfigError for an invalid address; the
    message never repeats `url`, which may contain a password.
    """
    scheme = url.partition(":")[0]
    if scheme == "lancedb":
        from coe.retrieval.lancedb.store import LanceStore

        if find_spec("lancedb") is None:
            raise ConfigError(f"retrieval.store: lancedb is not installed; install it: {pip_install('documents')}")
        return LanceStore(base / _folder(url), encoder)
    if scheme in ("redis", "rediss"):
        from coe.retrieval.redis.store import RedisStore

        return RedisStore(url, encoder)
    raise ConfigError(f"retrieval.store: {scheme!r} is not a kind of store; {URL_FORMS}")


def _folder(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or parts.fragment or not path.strip("/"):
        raise ConfigError(f"retrieval.store: the address does not name one folder; {URL_FORMS}")
    return path
