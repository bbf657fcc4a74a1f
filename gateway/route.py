"""`POST /v1/route`: the decision for a chat, without asking any expert."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from coe.composition import Composition
from coe.core import Wishes
from coe.errors import RequestError
from gateway.admission import Admission
from gateway.arrival import admit, begin
from gateway.current import Current
from gateway.cutoff import ClientLeftError
from gateway.dialects import chat as dialect
from gateway.errors import body_of, headers_of, status_of
from gateway.explanation import Explainer
from gateway.headers import read_wishes
from gateway.relay import respond


class RouteEndpoint:
    """Takes a Chat Completions body and answers which expert would get it and why. Nothing is logged. With the header
    x-coe-explain, for administrators, it tells more."""

    def __init__(self, current: Current, *, admission: Admission) -> None:
        self._current = current
        self._admission = admission
        self._explainer = Explainer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._current.serving
        limits = serving.registry.limits
        try:
            caller = serving.access.identify(scope["headers"], "route")
            wishes = read_wishes(scope, serving.registry.policy, tenant=caller.tenant)
            if wishes.explain:  # what else was learnt, and how the experts stand, is not for everybody
                serving.access.identify(scope["headers"], "admin")
            with self._admission.ticket(caller.key) as ticket, begin(self._admission, wishes) as cutoff:
                body = await admit(scope, receive, ticket=ticket, cutoff=cutoff, wishes=wishes, limits=limits)
                decision = await self._decision(serving.composition, body, wishes, tenant=caller.tenant)
            await respond(send, status=200, body=orjson.dumps(decision))
        except RequestError as error:
            await respond(send, status=status_of(error), body=body_of(error), headers=headers_of(error))
        except ClientLeftError:
            pass

    async def _decision(
        self, composition: Composition, body: bytes, wishes: Wishes, *, tenant: str | None
    ) -> dict[str, Any]:
        chat = dialect.parse(body)
        text, prediction = await composition.classify(chat, tenant)
        await composition.affinity.recall(chat, wishes)
        decision = composition.assign(chat, prediction, wishes)
        probabilities = zip(composition.router.categories, prediction.probabilities.tolist(), strict=True)
        explained = await self._explainer.explain(composition, text, prediction, decision) if wishes.explain else {}
        return {
            "expert": decision.expert,
            "category": decision.category,
            "confidence": round(decision.confidence, 4),
            "reason": decision.reason,
            "candidates": decision.candidates,
            "probabilities": {name: round(p, 4) for name, p in probabilities},
            "stage": prediction.stage,
            "router": composition.router.version,
            "overlay": prediction.overlay,
            **explained,
        }
