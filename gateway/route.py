"""`POST /v1/route`: the decision for a chat, without asking any expert."""

from __future__ import annotations

import orjson
from starlette.types import Receive, Scope, Send

from coe.composition import Composition
from coe.errors import RequestError
from gateway.body import ClientLeftError, read_json_body
from gateway.dialects import chat as dialect
from gateway.errors import body_of, status_of
from gateway.headers import Wishes, read_wishes
from gateway.relay import respond


class RouteEndpoint:
    """Takes a Chat Completions body and answers which expert would get it and why. Nothing is logged."""

    def __init__(self, composition: Composition) -> None:
        self._composition = composition
        self._limit = int(composition.registry.limits.max_body_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json_body(scope, receive, limit=self._limit)
            wishes = read_wishes(scope, self._composition.registry.policy)
            await respond(send, status=200, body=await self._decision(body, wishes))
        except RequestError as error:
            await respond(send, status=status_of(error), body=body_of(error))
        except ClientLeftError:
            pass

    async def _decision(self, body: bytes, wishes: Wishes) -> bytes:
        chat = dialect.parse(body)
        _, prediction = await self._composition.classify(chat)
        decision = self._composition.assign(chat, prediction, session=wishes.session, thrift=wishes.thrift)
        router = self._composition.router
        return orjson.dumps(
            {
                "expert": decision.expert,
                "category": decision.category,
                "confidence": round(decision.confidence, 4),
                "reason": decision.reason,
                "candidates": decision.candidates,
                "probabilities": {
                    name: round(p, 4)
                    for name, p in zip(router.categories, prediction.probabilities.tolist(), strict=True)
                },
                "stage": prediction.stage,
                "router": router.version,
            }
        )
