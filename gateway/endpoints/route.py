"""Decisions and token counts for a chat, without a call to any expert.

`POST /v1/route` takes a Chat Completions body and returns the expert that would answer it, and why. With the header
x-coe-explain, administrators also get the routed text, what it leaves out, the nearest training examples, the nearest
measured prompts if the plan's residual counted, and the state of each expert.
`POST /v1/messages/count_tokens` takes a Messages body and estimates its input tokens. Neither is logged.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

import routers
from coe.planning.assignment import nearest_measured
from coe.registry.permission import excluded_experts
from coe.routing.composition import Composition
from coe.routing.request_text import REASONS
from gateway.access.allowance import input_tokens
from gateway.chat import DryRun
from gateway.dialects.chat import CHAT
from gateway.dialects.messages import MESSAGES
from gateway.request.trace import Trace
from gateway.services import Services

MAX_NEIGHBOURS = 6
MAX_NEIGHBOUR_CHARACTERS = 300


def count_tokens_endpoint(services: Services) -> DryRun:
    """`POST /v1/messages/count_tokens`."""
    return DryRun(services, dialect=MESSAGES, permission="chat", answer=_token_count)


async def _token_count(trace: Trace) -> dict[str, Any]:
    """Estimate the input tokens, since each expert has its own tokenizer. System prompts that an expert adds and
    retrieved passages are not counted."""
    return {"input_tokens": math.ceil(input_tokens(trace.chat))}


def route_endpoint(services: Services) -> DryRun:
    """`POST /v1/route`."""
    return DryRun(services, dialect=CHAT, permission="route", answer=_decision, explains=True)


async def _decision(trace: Trace) -> dict[str, Any]:
    """Decide, and explain to administrators."""
    composition, chat, options = trace.snapshot.composition, trace.chat, trace.options
    routed, prediction = await composition.classifier.classify(chat, options.rule, options.rules)
    trace.routed, trace.prediction = routed, prediction
    await composition.assign(trace)
    decision = trace.decision
    assert decision is not None
    probabilities = zip(composition.router.categories, prediction.probabilities.tolist(), strict=True)
    answer = {
        "model": chat.model,
        "cost_weight": options.cost_weight,
        "expert": decision.expert,
        "category": decision.category,
        "confidence": round(decision.confidence, 4),
        "reason": decision.reason,
        "rule": decision.rule,
        "fallback_from": decision.fallback_from,
        "cause": decision.cause,
        "candidates": decision.candidates,
        "probabilities": {name: round(p, 4) for name, p in probabilities},
        "stage": prediction.stage,
        "language": prediction.language,
        "router": composition.router.version,
    }
    if not options.explain:
        return answer
    health_by_expert = {name: expert.health for name, expert in composition.experts.items()}
    return answer | {
        "in_distribution": round(prediction.in_distribution, 4),
        "utility": [round(utility, 4) for utility in decision.utility],
        "price": [round(price, 4) for price in decision.price],
        "correction": asdict(prediction.correction) if prediction.correction else None,
        "health": {name: {"up": one.up, "load": one.load} for name, one in health_by_expert.items()},
        "neighbours": await asyncio.to_thread(_neighbours, composition, routed.text),
        "measured": nearest_measured(composition.assignment, prediction, decision.candidates),
        "text": routed.text,
        "left_out": [asdict(part) | {"what": REASONS[part.kind]} for part in routed.left_out],
        "excluded": excluded_experts(composition.registry, options.rule),
    }


def _neighbours(composition: Composition, text: str) -> list[dict[str, Any]]:
    """The nearest training examples. Texts are returned only for examples that ship with this package or are declared
    in experts.yaml. A router may have learned others, such as corrected prompts, which are a user's data: it stores
    their digests alone."""
    declared = (text for one in composition.registry.categories for text in (one.description, *one.examples))
    texts = _starter_texts() | _by_digest(declared)
    return [
        {"category": one.category, "similarity": round(one.similarity, 4), "text": texts.get(one.digest)}
        for one in composition.router.neighbours(text, limit=MAX_NEIGHBOURS)
    ]


@cache
def _starter_texts() -> dict[str, str]:
    return _by_digest(one.prompt for one in routers.starter_examples())


def _by_digest(texts: Iterable[str]) -> dict[str, str]:
    return {routers.prompt_digest(text): text[:MAX_NEIGHBOUR_CHARACTERS] for text in texts}
