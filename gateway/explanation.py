"""What `POST /v1/route` adds for whoever asks why: the nearest examples, and what the experts were weighed by."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import routers
from coe.core import Decision, Prediction
from coe.registry import Registry
from coe.routing.composition import Composition

NEIGHBOURS = 6
LONGEST = 300
"""Characters of a neighbour's text that are shown."""


class Explainer:
    """Looks for neighbours in a thread, one at a time: requests that want an answer go before those that ask why.

    Texts are shown of examples that come with this package or stand in experts.yaml. Others a router may have learnt,
    corrected prompts above all, are somebody's own: of those it knows digests alone, and no text is told.
    """

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._known: tuple[str, Mapping[str, str]] = ("", {})

    async def explain(
        self, composition: Composition, text: str, prediction: Prediction, decision: Decision
    ) -> dict[str, Any]:
        """Of one decision."""
        standings = {name: expert.standing for name, expert in composition.experts.items()}
        return {
            "familiarity": round(prediction.familiarity, 4),
            "worth": [round(worth, 4) for worth in decision.worth],
            "price": [round(price, 4) for price in decision.price],
            "standings": {name: {"up": one.up, "load": one.load} for name, one in standings.items()},
            "neighbours": await self._neighbours(composition, text),
        }

    async def _neighbours(self, composition: Composition, text: str) -> list[dict[str, Any]]:
        async with self._looking:
            found = await asyncio.to_thread(partial(composition.router.neighbours, text, limit=NEIGHBOURS))
            known = await asyncio.to_thread(self._texts, composition.registry)
        return [
            {"category": one.category, "closeness": round(one.closeness, 4), "text": known.get(one.digest)}
            for one in found
        ]

    def _texts(self, registry: Registry) -> Mapping[str, str]:
        """By digest; put together when first asked for, and anew where experts.yaml has changed."""
        if self._known[0] != registry.digest:
            declared = [text for one in registry.categories for text in (one.description, *one.examples)]
            texts = [*(one.prompt for one in routers.shipped()), *declared]
            self._known = registry.digest, {routers.digest_of(text): text[:LONGEST] for text in texts}
        return self._known[1]
