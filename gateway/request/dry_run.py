"""Answers a request about a chat without calling an expert: steps 1 and 2 of the request pipeline, and no record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from coe.core import Chat, RequestOptions
from coe.core import Scope as Permission
from coe.errors import RequestError
from gateway.access import UNLIMITED
from gateway.dialects import Dialect
from gateway.errors import headers_of, status_of
from gateway.request.body import ClientLeftError
from gateway.request.line import respond
from gateway.request.options import read_options, resolve_model, with_rules
from gateway.serving_state import Serving, ServingState

Answer = Callable[[Serving, Chat, RequestOptions], Awaitable[dict[str, Any]]]
"""Answers a dry run with a JSON object."""


class DryRun:
    """An endpoint about a chat that calls no expert, as an ASGI application. It counts as one request and leaves no
    record. Keys need the scope `permission`; with `explains`, x-coe-explain is for administrators only."""

    def __init__(
        self, state: ServingState, *, dialect: Dialect, permission: Permission, answer: Answer, explains: bool = False
    ) -> None:
        self._state = state
        self._dialect = dialect
        self._permission: Permission = permission
        self._answer = answer
        self._explains = explains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving, allowance = self._state.serving, UNLIMITED
        access = serving.access
        try:
            caller = access.identify(scope["headers"], self._permission)
            options = read_options(scope, serving.registry.policy, tenant=caller.tenant, rule=caller.rule)
            if options.explain and self._explains:  # the answer holds training examples and the experts' health
                access.identify(scope["headers"], "admin")
            with self._state.admission.open(caller.key, timeout=options.timeout) as request:
                allowance = access.request_allowance(caller)
                async with allowance:
                    body = await request.admit(scope, receive)
                    chat = await request.parse(partial(self._dialect.parse, body), size=len(body))
                    model = chat.model
                    chat, options = resolve_model(chat, options, serving.registry, scope["headers"])
                    if (rules := serving.composition.rules) is not None:
                        options = with_rules(chat, options, rules, scope["headers"], caller=caller, model=model)
                    answer = await self._answer(serving, chat, options)
            await respond(send, status=200, body=orjson.dumps(answer), headers=allowance.headers())
        except RequestError as error:
            error.drop_frames()
            headers = [*headers_of(error), *allowance.headers()]
            await respond(send, status=status_of(error), body=self._dialect.error_body(error), headers=headers)
        except ClientLeftError:
            pass
