"""Serves one request of a chat API in eight steps: admit, parse, classify, assign, retrieve, call, relay, record.

`ChatEndpoint` is the ASGI application of one API. `ChatEndpoint._steps` lists steps 1 to 7, and `_record` is step 8.
Answer cache, stored responses, tracing and retrieval run only if they are declared. A `DryRun` takes the first two
steps alone. `Trace` holds what is known of a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from coe.core import PASS_THROUGH_APIS, TRANSLATED_APIS, Reply
from coe.core import Scope as Permission
from coe.errors import RequestError
from coe.experts.http.sse import EVENT_STREAM
from gateway.dialects import Dialect, Headers, headers_of
from gateway.request.admission import ActiveRequest
from gateway.request.body import ClientLeftError, read_head
from gateway.request.stored_step import check_owned
from gateway.request.streams import KeepAlive, cited, stream_head, with_cost
from gateway.request.trace import Trace, read_options, resolve_model, with_rules
from gateway.services import Services

_log = logging.getLogger("gateway")

ERROR_EVENT_TIMEOUT = 1.0
"""Seconds that the error event at the end of a stream waits for a client that does not read."""

PIECE_BYTES = 2**18
"""Bytes of an answer that are sent at a time."""
JSON = "application/json"
_NO_KEEP_ALIVE = nullcontext()


class _Turn(Awaitable[None]):
    """Lets the other requests of this moment catch up. Requests that take the same step one after the other find its
    code and data in the processor's caches: at 32 connections this is worth a fifth of the requests a second
    (docs/experiments/gateway.md)."""

    def __init__(self, active: Collection[ActiveRequest]) -> None:
        self._active = active

    def __await__(self) -> Generator[None]:
        if len(self._active) > 1:
            yield


class ChatEndpoint:
    """Runs the eight steps of a request for one chat API; an ASGI application."""

    def __init__(self, services: Services, dialect: Dialect) -> None:
        self._services = services
        self._dialect = dialect
        self._tracing = services.tracing
        self._cache = services.cache
        self._stored = services.stored if dialect.api == "responses" else None
        self._turn = _Turn(services.admission.active)
        self._observers = services.observers if self._cache is None else (*services.observers, self._cache.observe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        trace = Trace(snapshot=services.snapshot, api=self._dialect.api, head=read_head(scope))
        try:
            identify(trace, "chat")
            if len(trace.snapshot.access.keys) > 1:
                trace.attempts.caller = trace.caller.key or ""
            trace.attempts.memory = partial(services.answers.grow, trace.caller.key, trace.snapshot.registry.limits)
            if self._tracing is not None:
                trace.options = self._tracing.begin(trace, trace.options)
            with services.admission.open(trace.caller.key, timeout=trace.options.timeout) as active:
                trace.allowance = allowance = trace.snapshot.access.allowance(trace.caller, trace.attempts.sent)
                async with allowance:
                    await self._steps(trace, active, scope, receive, send)
        except RequestError as error:
            trace.failed(error)
            error.drop_frames()
            await self._refuse(error, trace, send)
        except ClientLeftError:
            trace.outcome, trace.client_left = "aborted", True
        except Exception:
            complete, trace.outcome = trace.outcome == "ok", "internal_error"
            _log.exception("a request failed", extra={"fields": {"request_id": trace.request_id}})
            if not complete:
                message = "internal error; the gateway's own log names it under this request id"
                await self._refuse(RequestError(message), trace, send)
        finally:
            try:
                await self._turn
            finally:
                self._record(trace)  # 8

    async def _steps(self, trace: Trace, active: ActiveRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Steps 1 to 7. Requests that pass through skip 3 and 5; one that the cache answers skips 3 to 6."""
        composition, is_routed = trace.snapshot.composition, trace.api not in PASS_THROUGH_APIS
        body = await active.admit(trace.head, receive, forms=self._dialect.forms)  # 1
        await self._turn
        trace.step("parse")  # 2
        size = len(body)
        await parse(trace, active, self._dialect, body)
        del body  # the parsed chat replaces it in memory
        if self._stored is not None:
            await self._stored.load_history(trace, active, body_bytes=size)
        if trace.caller.tenant is not None and trace.api in TRANSLATED_APIS:
            check_owned(trace.chat)
        reply: Reply | None = None
        if self._cache is not None:
            reply = await self._cache.lookup(trace, body_bytes=size)
        interval, event = trace.snapshot.registry.policy.keep_alive_interval, self._dialect.keep_alive
        stream = KeepAlive(trace, send, event=event, interval=interval) if trace.chat.stream else None
        with stream or _NO_KEEP_ALIVE:
            if reply is None:
                assert trace.allowance is not None
                await trace.allowance.reserve(trace.chat, trace.options.recipe, size=size)
                if is_routed:
                    await self._turn
                    trace.step("classify")  # 3
                    trace.routed, trace.prediction = await composition.classifier.classify(
                        trace.chat, trace.options.rule, trace.options.rules
                    )
                await self._turn
                trace.step("assign")  # 4
                await composition.assign(trace)
                chat = trace.chat
                if is_routed:
                    trace.step("retrieve")  # 5
                    if composition.retrieves:
                        chat = await composition.retrieve(trace, tenant=trace.caller.tenant)
                trace.step("call")  # 6
                reply = await composition.call(trace, chat, deadline=active.deadline)
                trace.answered(reply)
                if active.memory:  # the expert has the large body
                    trace.chat = trace.chat.without_content()
                    active.keep_memory(len(trace.stored.part) if trace.stored is not None else 0)
                del chat
            trace.step("relay")  # 7
            try:
                await relay(reply, self._chunks(reply, trace), send if stream is None else stream.send, trace)
                active.complete()
                trace.complete()
            finally:
                await reply.aclose()

    def _chunks(self, reply: Reply, trace: Trace) -> Any:
        """The chunks as the client gets them: with citations of passages, and stored if the request may refer to it."""
        chunks: Any = reply.chunks()
        if trace.api == "chat" and (passages := trace.retrieval_result.passages):
            chunks = cited(chunks, passages, media_type=reply.media_type)
        if self._stored is not None and trace.stored is not None:
            chunks = self._stored.keep(chunks, trace.stored, media_type=reply.media_type)
        return chunks

    def _record(self, trace: Trace) -> None:
        """Step 8: report a finished request to the observers, however it ended."""
        for observe in self._observers:
            try:
                observe(trace)
            except Exception:
                _log.exception("an observer failed", extra={"fields": {"request_id": trace.request_id}})

    async def _refuse(self, error: RequestError, trace: Trace, send: Send) -> None:
        """Send the error: as the response, or as an event of the stream whose headers are sent."""
        if trace.in_part or (trace.reply is not None and trace.reply.media_type not in (JSON, EVENT_STREAM)):
            return  # a part of the answer is sent: the server closes the connection, so that the client notices
        if trace.stream_begun:
            event = {"type": "http.response.body", "body": self._dialect.error_event(error), "more_body": False}
            with suppress(TimeoutError):
                async with asyncio.timeout(ERROR_EVENT_TIMEOUT):
                    await send(event)
            return
        headers = [*trace.headers(), *headers_of(error)]
        trace.status = error.status
        await respond(send, status=trace.status, body=self._dialect.error_body(error), headers=headers)


Answer = Callable[[Trace], Awaitable[dict[str, Any]]]
"""Answers a dry run with a JSON object."""


class DryRun:
    """An endpoint about a chat that calls no expert, as an ASGI application. It counts as one request and leaves no
    record. Keys need the scope `permission`; with `explains`, x-coe-explain is for administrators only."""

    def __init__(
        self, services: Services, *, dialect: Dialect, permission: Permission, answer: Answer, explains: bool = False
    ) -> None:
        self._services = services
        self._dialect = dialect
        self._permission: Permission = permission
        self._answer = answer
        self._explains = explains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(snapshot=self._services.snapshot, api=self._dialect.api, head=read_head(scope))
        access = trace.snapshot.access
        try:
            identify(trace, self._permission)
            if trace.options.explain and self._explains:  # the answer holds training examples and the experts' health
                access.identify(trace.head.items(), "admin")
            with self._services.admission.open(trace.caller.key, timeout=trace.options.timeout) as active:
                trace.allowance = access.request_allowance(trace.caller)
                async with trace.allowance:
                    body = await active.admit(trace.head, receive)
                    await parse(trace, active, self._dialect, body)
                    answer = await self._answer(trace)
            status, content, headers = 200, orjson.dumps(answer), list[tuple[bytes, bytes]]()
        except RequestError as error:
            error.drop_frames()
            status, content, headers = error.status, self._dialect.error_body(error), headers_of(error)
        except ClientLeftError:
            return
        if trace.allowance is not None:
            headers += trace.allowance.headers()
        await respond(send, status=status, body=content, headers=headers)


def identify(trace: Trace, permission: Permission) -> None:
    """Set the caller and the options of the headers. Raises Unauthorized, Forbidden, InvalidRequest."""
    access = trace.snapshot.access
    trace.caller = access.identify(trace.head.items(), permission)
    trace.options = read_options(trace.head, trace.snapshot.registry.policy, caller=trace.caller, api=trace.api)
    if trace.options.purpose and not access.is_admin(trace.head.items()):
        trace.options = replace(trace.options, purpose=None)  # an ordinary key cannot hide its requests from reports


async def parse(trace: Trace, active: ActiveRequest, dialect: Dialect, body: bytes | bytearray) -> None:
    """Step 2: set the chat with its resolved model, and the rules that match. Raises InvalidRequest."""
    trace.chat = await active.process(partial(dialect.parse, body), size=len(body))
    trace.requested_model = trace.chat.model
    trace.chat, trace.options = resolve_model(trace.chat, trace.options, trace.snapshot.registry, trace.head)
    if (rules := trace.snapshot.composition.rules) is not None:
        trace.options = with_rules(
            trace.chat, trace.options, rules, trace.head, caller=trace.caller, model=trace.requested_model
        )


async def relay(reply: Reply, chunks: AsyncGenerator[bytes, None], send: Send, trace: Trace) -> None:
    """Send a reply to its end. Raises the ExpertError that breaks it off; the headers of a stream are already sent.

    `send` waits for the socket: a client that reads slowly slows down the expert and uses no memory of this process.
    """
    if reply.media_type == JSON:
        body = b"".join([chunk async for chunk in chunks])
        for tap in trace.taps:
            tap(body)
        headers = trace.headers()
        if (cost := trace.cost) is not None:
            headers.append((b"x-coe-cost", orjson.dumps(round(cost, 10))))
        trace.in_part = True
        await respond(send, status=200, body=body, headers=headers)
        return
    await send(stream_head(trace.headers(), media_type=reply.media_type))
    async with aclosing(chunks):
        async for chunk in chunks:
            for tap in trace.taps:
                tap(chunk)
            chunk = with_cost(chunk, trace)
            if len(chunk) > PIECE_BYTES:
                trace.in_part = True
                await _send_pieces(send, chunk, more=True)
                trace.in_part = False
            else:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def respond(send: Send, *, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a whole JSON response."""
    start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    if len(body) <= PIECE_BYTES:
        await send({"type": "http.response.body", "body": body, "more_body": False})
    else:
        await _send_pieces(send, body, more=False)


async def _send_pieces(send: Send, body: bytes, *, more: bool) -> None:
    """Send a part of the body. `send` waits for the client before each piece, so the server buffers one at most, and
    the memory of a large answer stays reserved until its client has read the rest."""
    at = 0
    while len(body) - at > PIECE_BYTES:
        await send({"type": "http.response.body", "body": body[at : at + PIECE_BYTES], "more_body": True})
        at += PIECE_BYTES
        await asyncio.sleep(0)  # so that the request notices a client that left, to which `send` does nothing
    await send({"type": "http.response.body", "body": body[at:], "more_body": more})
