"""Documents: where they are kept and when they are consulted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.base import Positive, StrictModel


class RetrievalPrice(StrictModel):
    """What passages must gain to be worth it, in expected quality (0 to 1), as measured when the gate was fitted."""

    thousand_tokens: Annotated[float, Field(ge=0)] = 0.1
    second: Annotated[float, Field(ge=0)] = 0.1
    """Of waiting for the look-up."""


class RetrievalSpec(StrictModel):
    """Documents that experts may be given passages of; `coe index` fills the store."""

    store: Annotated[str, Field(pattern=r"^(lancedb:///|rediss?://)")] | None = None
    """lancedb:///FOLDER (relative to the state folder) or redis://HOST:PORT/DB, Redis 8; left out: no documents."""
    collections: tuple[str, ...] = ()
    """Where to look; left out: everywhere."""
    passages: Annotated[int, Field(ge=1, le=20)] = 4
    """Passages that a question is given at most."""
    tokens: Annotated[int, Field(ge=64)] = 1024
    """Tokens of all passages together, about; fewer where the expert's context has less room."""
    least_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.2
    """A passage that is less like the question is left out."""
    deadline: Positive = 0.5
    """Seconds for a consultation; a store that takes longer is done without."""
    price: RetrievalPrice = RetrievalPrice()
    exploration: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the gate judges for which a coin decides in its place whether they are given what was
    found, so that feedback tells what passages change; `coe retrain` learns from these alone."""
