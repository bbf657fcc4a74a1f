"""A question about a chat that asks no expert: admitted as the chat would be, counted as one request, kept nowhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from coe.core import Chat, RequestOptions
from coe.core import Scope as Permission
from coe.errors import RequestError
from gateway.access import UNLIMITED
from gateway.dialects import Dialect
from gateway.errors import headers_of, status_of
from gateway.request.arrival import admit, begin, parsed
from gateway.request.cancellation import ClientLeftError
from gateway.request.options import read_options
from gateway.request.relay import respond
from gateway.serving_state import Serving, ServingState

Answer = Callable[[Serving, Chat, RequestOptions], Awaitable[dict[str, Any]]]


class DryRun:
    """One endpoint as an ASGI application, for keys with the scope `permission`. With `explains` it tells
    administrators more who send x-coe-explain, and refuses the header of others."""

    def __init__(
        self, current: ServingState, *, dialect: Dialect, permission: Permission, answer: Answer, explains: bool = False
    ) -> None:
        self._current = current
        self._admission = current.admission
        self._dialect = dialect
        self._permission: Permission = permission
        self._answer = answer
        self._explains = explains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving, allowance = self._current.serving, UNLIMITED
        access, limits = serving.access, serving.registry.limits
        try:
            caller = access.identify(scope["headers"], self._permission)
            options = read_options(scope, serving.registry.policy, tenant=caller.tenant)
            if options.explain and self._explains:  # what else was learnt, and how the experts stand
                access.identify(scope["headers"], "admin")
            with self._admission.ticket(caller.key) as ticket, begin(self._admission, options) as cutoff:
                allowance = access.request_allowance(caller)
                async with allowance:
                    body = await admit(scope, receive, ticket=ticket, cutoff=cutoff, options=options, limits=limits)
                    chat = await parsed(self._dialect, body, self._admission)
                    answer = await self._answer(serving, chat, options)
            await respond(send, status=200, body=orjson.dumps(answer), headers=allowance.headers())
        except RequestError as error:
            error.drop_frames()
            headers = [*headers_of(error), *allowance.headers()]
            await respond(send, status=status_of(error), body=self._dialect.error_body(error), headers=headers)
        except ClientLeftError:
            pass
