"""`POST /v1/route`: the decision for a chat, without asking any expert."""

from __future__ import annotations

from typing import Any

from coe.core import Chat, Wishes
from gateway.dialects import chat as dialect
from gateway.explanation import Explainer
from gateway.request.dry_run import Inquiry
from gateway.serving_state import Current, Serving


def route(current: Current) -> Inquiry:
    """Takes a Chat Completions body and answers which expert would get it and why. Nothing is logged. With the header
    x-coe-explain, for administrators, it tells more."""
    return Inquiry(current, dialect=dialect, permission="route", answer=_Decisions().answer, explains=True)


class _Decisions:
    def __init__(self) -> None:
        self._explainer = Explainer()

    async def answer(self, serving: Serving, chat: Chat, wishes: Wishes) -> dict[str, Any]:
        composition = serving.composition
        text, prediction = await composition.classify(chat, wishes.tenant)
        await composition.affinity.recall(chat, wishes)
        decision = composition.assign(chat, prediction, wishes)
        probabilities = zip(composition.router.categories, prediction.probabilities.tolist(), strict=True)
        explained = await self._explainer.explain(composition, text, prediction, decision) if wishes.explain else {}
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
