"""`POST /v1/route`: the decision for a chat, without asking any expert.

What `POST /v1/route` adds for whoever asks why: the nearest examples, and what the experts were weighed by.

`POST /v1/messages/count_tokens`: about how many tokens a Messages request has, without asking any expert.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import routers
from coe.core import Chat, Decision, Prediction, RequestOptions
from coe.registry import Registry
from coe.routing.composition import Composition
from coe.routing.eligibility import check_model
from gateway.access.estimate import input_tokens
from gateway.dialects import chat as chat_dialect
from gateway.dialects import messages as messages_dialect
from gateway.request.line import DryRun
from gateway.serving_state import Serving, ServingState

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
        health_by_expert = {name: expert.health for name, expert in composition.experts.items()}
        return {
            "in_distribution": round(prediction.in_distribution, 4),
            "utility": [round(utility, 4) for utility in decision.utility],
            "price": [round(price, 4) for price in decision.price],
            "health": {name: {"up": one.up, "load": one.load} for name, one in health_by_expert.items()},
            "neighbours": await self._neighbours(composition, text),
        }

    async def _neighbours(self, composition: Composition, text: str) -> list[dict[str, Any]]:
        async with self._looking:
            found = await asyncio.to_thread(partial(composition.router.neighbours, text, limit=NEIGHBOURS))
            known = await asyncio.to_thread(self._texts, composition.registry)
        return [
            {"category": one.category, "similarity": round(one.similarity, 4), "text": known.get(one.digest)}
            for one in found
        ]

    def _texts(self, registry: Registry) -> Mapping[str, str]:
        """By digest; put together when first asked for, and anew where experts.yaml has changed."""
        if self._known[0] != registry.digest:
            declared = [text for one in registry.categories for text in (one.description, *one.examples)]
            texts = [*(one.prompt for one in routers.shipped()), *declared]
            self._known = registry.digest, {routers.digest_of(text): text[:LONGEST] for text in texts}
        return self._known[1]


def route(current: ServingState) -> DryRun:
    """Takes a Chat Completions body and answers which expert would get it and why. Nothing is logged. With the header
    x-coe-explain, for administrators, it tells more."""
    return DryRun(current, dialect=chat_dialect, permission="route", answer=_Decisions().answer, explains=True)


class _Decisions:
    def __init__(self) -> None:
        self._explainer = Explainer()

    async def answer(self, serving: Serving, chat: Chat, options: RequestOptions) -> dict[str, Any]:
        composition = serving.composition
        text, prediction = await composition.classify(chat, options.tenant)
        await composition.affinity.recall(chat, options)
        decision = composition.assign(chat, prediction, options)
        probabilities = zip(composition.router.categories, prediction.probabilities.tolist(), strict=True)
        explained = await self._explainer.explain(composition, text, prediction, decision) if options.explain else {}
        return {
            "expert": decision.expert,
            "category": decision.category,
            "confidence": round(decision.confidence, 4),
            "reason": decision.reason,
            "fallback_from": decision.fallback_from,
            "cause": decision.cause,
            "candidates": decision.candidates,
            "probabilities": {name: round(p, 4) for name, p in probabilities},
            "stage": prediction.stage,
            "router": composition.router.version,
            "overlay": prediction.overlay,
            **explained,
        }


def count_tokens(current: ServingState) -> DryRun:
    """Takes a Messages body and answers with an estimate: each expert has a tokenizer of its own, and `auto` may be any
    of them. What an expert gets beside the body (its system prompt, passages) is not counted. Nothing is logged."""
    return DryRun(current, dialect=messages_dialect, permission="chat", answer=_answer)


async def _answer(serving: Serving, chat: Chat, _: RequestOptions) -> dict[str, Any]:
    check_model(chat, serving.registry)
    return {"input_tokens": math.ceil(input_tokens(chat))}
