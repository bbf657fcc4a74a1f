"""Documents: where they are kept and when they are consulted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.declared import Declared


class Retrieval(Declared):
    """Documents that experts may be given passages of; `coe index` fills the store."""

    store: Annotated[str, Field(pattern=r"^(lancedb:///|rediss?://)")] | None = None
    """lancedb:///FOLDER (relative to the state folder) or redis://HOST:PORT/DB, Redis 8; left out: no documents."""
