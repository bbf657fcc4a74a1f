"""The serving line of one chat request, from admission to the record, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from coe.composition import Composition
from coe.core import RoutingRecord
from coe.errors import Overloaded, RequestError
from gateway.admission import Admission
from gateway.body import ClientLeftError, presence, read_json_body
from gateway.dialects import chat as dialect
from gateway.errors import body_of, error_body, status_of
from gateway.headers import read_wishes
from gateway.metrics import Metrics
from gateway.relay import relay, respond
from gateway.trace import Trace

_log = logging.getLogger("gateway")


class ChatLine:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(
        self,
        composition: Composition,
        *,
        admission: Admission,
        put_record: Callable[[RoutingRecord, str], None],
        metrics: Metrics,
    ) -> None:
        self._composition = composition
        self._admission = admission
        self._put_record = put_record
        self._metrics = metrics
        self._limit = int(composition.registry.limits.max_body_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace()
        try:
            with self._admission.permit():  # 1 admit
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
                await self._apologise(trace, send)
        finally:  # 7 record
            self._metrics.observe(trace)
            self._put_record(trace.record(self._composition), trace.text)

    async def _answer(self, trace: Trace, scope: Scope, receive: Receive, send: Send) -> None:
        wishes = read_wishes(scope, self._composition.registry.policy)
        trace.session, trace.thrift = wishes.session, wishes.thrift
        body = await read_json_body(scope, receive, limit=self._limit)
        async with presence(receive):
            trace.chat = chat = dialect.parse(body)  # 2 parse
            trace.text, trace.prediction = await self._composition.classify(chat)  # 3 classify
            trace.decision = self._composition.assign(  # 4 assign
                chat, trace.prediction, session=wishes.session, thrift=wishes.thrift
            )
            trace.routed()
            answer = await self._composition.call(chat, trace.decision, session=wishes.session)  # 5 call
            try:
                trace.answered(answer)
                trace.outcome = await relay(answer.reply, send, headers=self._headers(trace))  # 6 relay
            finally:
                await answer.reply.aclose()

    def _headers(self, trace: Trace) -> list[tuple[bytes, bytes]]:
        return trace.headers(self._composition.router.version)

    async def _refuse(self, error: RequestError, trace: Trace, send: Send) -> None:
        headers = self._headers(trace)
        if isinstance(error, Overloaded):
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
        await respond(send, status=status_of(error), body=body_of(error), headers=headers)

    async def _apologise(self, trace: Trace, send: Send) -> None:
        message = "internal error; the gateway's own log names it under this request id"
        body = error_body(message, kind="api_error", code="internal_error")
        await respond(send, status=500, body=body, headers=self._headers(trace))
