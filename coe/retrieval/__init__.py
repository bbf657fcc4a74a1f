"""Documents that experts may be given passages of: stores behind one Protocol, and what fills them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from coe.errors import ConfigError
from coe.retrieval.passages import DocumentStore, EncoderId, Passage, Retriever

__all__ = ["DocumentStore", "EncoderId", "Passage", "Retriever", "open_store"]

FORMS = "write lancedb:///FOLDER (relative to the state folder), lancedb:////absolute/folder, or redis://host:6379/0"


def open_store(url: str, *, base: Path, encoder: EncoderId) -> DocumentStore:
    """The store at `url` for vectors of `encoder`; relative folders start at `base`.

    Nothing is connected or created before the first verb, so a server that is away delays nobody. Raises ConfigError
    for an address that cannot be meant; the message never repeats `url`, which may hold a password.
    """
    scheme = url.partition(":")[0]
    if scheme == "lancedb":
        from coe.retrieval.lancedb.store import LanceStore

        if find_spec("lancedb") is None:
            raise ConfigError("retrieval.store: lancedb is not installed; install it: pip install 'coe[documents]'")
        return LanceStore(base / _folder(url), encoder)
    if scheme in ("redis", "rediss"):
        from coe.retrieval.redis.store import RedisStore

        return RedisStore(url, encoder)
    raise ConfigError(f"retrieval.store: {scheme!r} is not a kind of store; {FORMS}")


def _folder(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or parts.fragment or not path.strip("/"):
        raise ConfigError(f"retrieval.store: the address does not name one folder; {FORMS}")
    return path
