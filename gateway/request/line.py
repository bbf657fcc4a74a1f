"""The serving line of one chat request, from admission to the record, in one place.

The times of the line's steps as a header, for requests that ask for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from coe.core import Chat
from coe.errors import RequestError
from gateway.dialects import Dialect
from gateway.errors import headers_of as error_headers
from gateway.errors import status_of
from gateway.observability.attributes import steps
from gateway.observability.tracing import Tracing
from gateway.request.admission import Admission
from gateway.request.arrival import admit, begin, parsed
from gateway.request.cancellation import ClientLeftError
from gateway.request.citations import cited
from gateway.request.options import read_options
from gateway.request.relay import EVENT_STREAM, relay, respond
from gateway.request.trace import Trace
from gateway.serving_state import ServingState


def headers_of(trace: Trace) -> list[tuple[bytes, bytes]]:
    """The response headers known so far; with x-coe-explain Server-Timing too (W3C), in milliseconds for each step that
    came to its end before the headers went out."""
    found = trace.headers()
    if trace.options is not None and trace.options.explain:
        done = [
            f"{name};dur={ended - began:.3f}" for name, began, ended, whole in steps(trace, trace.elapsed_ms()) if whole
        ]
        found.append((b"server-timing", ", ".join(done).encode()))
    return found


_log = logging.getLogger("gateway")

Observer = Callable[[Trace], None]
"""Is told of every finished request; must neither wait nor raise."""
LAST_EVENT = 1.0
"""Seconds that an error event waits for a client that does not read."""


class Line:
    """One chat API as an ASGI application."""

    def __init__(
        self,
        current: ServingState,
        *,
        dialect: Dialect,
        admission: Admission,
        observers: Sequence[Observer],
        tracing: Tracing | None = None,
    ) -> None:
        self._current = current
        self._dialect = dialect
        self._admission = admission
        self._observers = observers
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(self._current.serving, api=self._dialect.API)
        try:
            trace.caller = trace.serving.access.identify(scope["headers"], "chat")
            await self._answer(trace, scope, receive, send)
        except RequestError as error:
            trace.failed(error)
            error.drop_frames()
            await self._refuse(error, trace, send)
        except ClientLeftError:
            trace.outcome, trace.left = "aborted", True
        except Exception:
            complete, trace.outcome = trace.outcome == "ok", "internal_error"
            _log.exception("a request failed", extra={"request_id": trace.request_id})
            if not complete:
                message = "internal error; the gateway's own log names it under this request id"
                await self._refuse(RequestError(message), trace, send)
        finally:  # 8 record, where it was routed
            for observe in self._observers:
                observe(trace)

    async def _answer(self, trace: Trace, scope: Scope, receive: Receive, send: Send) -> None:
        composition, access = trace.serving.composition, trace.serving.access
        policy, limits = trace.serving.registry.policy, trace.serving.registry.limits
        options = read_options(scope, policy, tenant=trace.caller.tenant, api=trace.api)
        if options.purpose and not access.is_admin(scope["headers"]):
            options = replace(options, purpose=None)  # an ordinary key cannot hide its requests from reports
        trace.options = options
        if self._tracing is not None:
            trace.options = options = self._tracing.begin(trace, options)
        admission = self._admission
        with admission.ticket(trace.caller.key) as ticket, begin(admission, options) as cutoff:  # 1 admit
            trace.allowance = access.allowance(trace.caller, trace.spent)
            async with trace.allowance:
                body = await admit(scope, receive, ticket=ticket, cutoff=cutoff, options=options, limits=limits)
                chat = await self._parsed(body, trace)  # 2 parse
                del body  # or it would stay in memory beside what was parsed of it
                await trace.allowance.reserve(chat)
                trace.allowed_ms = trace.elapsed_ms()
                trace.text, trace.prediction = await composition.classify(chat, trace.caller.tenant)  # 3 classify
                trace.classified_ms = trace.elapsed_ms()
                await composition.affinity.recall(chat, options)
                trace.decision = composition.assign(chat, trace.prediction, options)  # 4 assign
                trace.routed()
                chat = await trace.consulted(chat, options)  # 5 gate
                attempts, deadline = trace.attempts, cutoff.deadline
                answer = await composition.call(
                    chat, trace.decision, options, deadline=deadline, attempts=attempts
                )  # 6 call
                try:
                    trace.answered(answer)
                    if ticket.memory:
                        trace.chat = chat = chat.without_content()
                        ticket.free_body()
                    await relay(cited(answer.reply, trace), send, headers=headers_of(trace))  # 7 relay
                    cutoff.over()
                    trace.outcome = "ok"
                finally:
                    await answer.reply.aclose()

    async def _parsed(self, body: bytes | bytearray, trace: Trace) -> Chat:
        trace.read_ms = trace.elapsed_ms()
        trace.chat = chat = await parsed(self._dialect, body, self._admission)
        trace.parsed_ms = trace.elapsed_ms()
        return chat

    async def _refuse(self, error: RequestError, trace: Trace, send: Send) -> None:
        """Tell the client: by status and body, or inside the stream whose headers are out."""
        if trace.reply is not None and trace.reply.media_type == EVENT_STREAM:
            last = {"type": "http.response.body", "body": self._dialect.error_event(error), "more_body": False}
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_EVENT):
                    await send(last)
            return
        headers = [*headers_of(trace), *error_headers(error)]
        trace.status = status_of(error)
        await respond(send, status=trace.status, body=self._dialect.error_body(error), headers=headers)
