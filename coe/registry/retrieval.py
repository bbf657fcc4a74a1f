"""The section `retrieval` of experts.yaml: the document store, limits of passages, and the price of the gate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.base import Positive, Probability, StrictModel


class RetrievalPrice(StrictModel):
    """Gain in expected quality (0 to 1) that passages must exceed, by what retrieval took when the gate was fitted."""

    per_thousand_tokens: Annotated[float, Field(ge=0)] = 0.1
    """Required gain per thousand tokens of passages."""
    per_second: Annotated[float, Field(ge=0)] = 0.1
    """Required gain per second of retrieval."""


class RetrievalSpec(StrictModel):
    """Retrieval of passages from documents. `coe index` fills the document store."""

    store: Annotated[str, Field(pattern=r"^(lancedb:///|rediss?://)")] | None = None
    """Document store: lancedb:///FOLDER (relative to the state folder) or redis://HOST:PORT/DB (Redis 8). Without it
    retrieval is off."""
    collections: tuple[str, ...] = ()
    """Collections to search. Default: all."""
    max_passages: Annotated[int, Field(ge=1, le=20)] = 4
    """Largest number of passages per request."""
    max_tokens: Annotated[int, Field(ge=64)] = 1024
    """Largest size of all passages together, in estimated tokens. An expert with a short context gets fewer."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.2
    """Smallest cosine similarity of a passage to the question. Passages below it are left out."""
    timeout: Positive = 0.5
    """Seconds for retrieval. If the store is slower, the request continues without passages."""
    price: RetrievalPrice = RetrievalPrice()
    """Price of passages, which their expected gain must exceed."""
    exploration_rate: Probability = 0.0
    """Share of requests for which a random draw replaces the gate's decision whether to insert the passages. `coe
    retrain` learns the effect of passages from these requests only."""
