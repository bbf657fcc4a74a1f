"""The serving line of one chat request, from admission to the record, in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from coe.errors import DeadlineExceeded, RequestError
from gateway.admission import Admission
from gateway.body import ClientLeftError, presence, read_json_body
from gateway.current import Current
from gateway.dialects import Dialect
from gateway.errors import retry_header, status_of
from gateway.headers import read_wishes
from gateway.relay import relay, respond
from gateway.trace import Trace

_log = logging.getLogger("gateway")

Observer = Callable[[Trace], None]
"""Is told of every finished request; must neither wait nor raise."""


class Line:
    """One chat API as an ASGI application."""

    def __init__(
        self, current: Current, *, dialect: Dialect, admission: Admission, observers: Sequence[Observer]
    ) -> None:
        self._current = current
        self._dialect = dialect
        self._admission = admission
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(self._current.serving, api=self._dialect.API)
        try:
            trace.caller = trace.serving.access.identify(scope["headers"], "chat")
            async with self._admission.permit(trace.caller.key):  # 1 admit
                await self._answer(trace, scope, receive, send)
        except RequestError as error:
            trace.failed(error)
            await self._refuse(error, trace, send)
        except ClientLeftError:
            trace.outcome = "aborted"
        except Exception:
            trace.outcome = "internal_error"
            _log.exception("request %s failed", trace.request_id)
            if trace.reply is None:
                message = "internal error; the gateway's own log names it under this request id"
                await self._refuse(RequestError(message), trace, send)
        finally:  # 7 record
            for observe in self._observers:
                observe(trace)

    async def _answer(self, trace: Trace, scope: Scope, receive: Receive, send: Send) -> None:
        composition, access = trace.serving.composition, trace.serving.access
        policy, limits = trace.serving.registry.policy, trace.serving.registry.limits
        trace.wishes = wishes = read_wishes(scope, policy)
        until = asyncio.get_running_loop().time() + wishes.timeout
        body = await read_json_body(scope, receive, limit=int(limits.max_body_mb * 2**20))
        async with presence(receive):
            trace.chat = chat = self._dialect.parse(body)  # 2 parse
            async with access.allowance(trace.caller, chat) as trace.allowance:
                try:
                    async with asyncio.timeout_at(until):
                        trace.text, trace.prediction = await composition.classify(chat)  # 3 classify
                        trace.decision = composition.assign(chat, trace.prediction, wishes)  # 4 assign
                        trace.routed()
                        answer = await composition.call(chat, trace.decision, wishes)  # 5 call
                except TimeoutError:
                    message = f"no answer began within the {wishes.timeout:g} s this request had"
                    raise DeadlineExceeded(message) from None
                try:
                    trace.answered(answer)
                    headers = trace.headers()
                    trace.outcome = await relay(  # 6 relay
                        answer.reply, send, headers=headers, until=until, error_event=self._dialect.error_event
                    )
                finally:
                    await answer.reply.aclose()

    async def _refuse(self, error: RequestError, trace: Trace, send: Send) -> None:
        headers = [*trace.headers(), *retry_header(error)]
        await respond(send, status=status_of(error), body=self._dialect.error_body(error), headers=headers)
