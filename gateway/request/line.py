"""Serves one request of a chat API in eight steps: admit, parse, classify, assign, retrieve, call, relay, record.

`Line` is the ASGI application of one API. `Line._steps` lists steps 1 to 7, and `Line._record` is step 8. Answer cache,
stored responses, tracing and retrieval run only if they are declared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial

from starlette.types import Receive, Scope, Send

from coe.core import PASS_THROUGH_APIS, Chat, Reply, RequestOptions
from coe.errors import RequestError
from coe.experts.http.sse import EVENT_STREAM
from coe.experts.translation.expert import TRANSLATED_APIS
from coe.routing.composition import NO_CONVERSATION, RoutedReply
from coe.routing.conversation import Conversation, read_conversation
from coe.routing.decision import NO_PREVIOUS, Previous
from gateway.access import Allowance
from gateway.cache.answer import CapturedReply
from gateway.dialects import Dialect
from gateway.errors import Headers, headers_of, status_of
from gateway.observability.tracing import Tracing
from gateway.request.admission import ActiveRequest
from gateway.request.body import ClientLeftError
from gateway.request.cache_step import CacheStep
from gateway.request.citations import cited
from gateway.request.keep_alive import KeepAlive, stream_head
from gateway.request.options import read_options, resolve_model, with_rules
from gateway.request.stored_step import StoredStep, check_owned
from gateway.request.trace import Trace
from gateway.serving_state import ServingState

_log = logging.getLogger("gateway")

ERROR_EVENT_TIMEOUT = 1.0
"""Seconds that the error event at the end of a stream waits for a client that does not read."""

PIECE_BYTES = 2**18
"""Bytes of an answer that are sent at a time."""
DEPLOYMENT = "model"
"""Parameter of a path that names the model in place of the body."""
JSON = "application/json"
_NO_KEEP_ALIVE = nullcontext()
Observer = Callable[[Trace], None]
"""Called with the trace of every finished request; must neither wait nor raise."""


class Line:
    """Runs the eight steps of a request for one chat API; an ASGI application."""

    def __init__(
        self,
        state: ServingState,
        *,
        dialect: Dialect,
        observers: Sequence[Observer],
        tracing: Tracing | None = None,
        cache: CacheStep | None = None,
        stored: StoredStep | None = None,
    ) -> None:
        self._state = state
        self._dialect = dialect
        self._observers = observers if cache is None else (*observers, cache.observe)
        self._tracing = tracing
        self._cache = cache
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(self._state.serving, api=self._dialect.api)
        try:
            options = self._read_head(trace, scope)
            trace.attempts.memory = partial(self._state.answers.grow, trace.caller.key, trace.serving.registry.limits)
            trace.options = options if self._tracing is None else self._tracing.begin(trace, options)
            with self._state.admission.open(trace.caller.key, timeout=options.timeout) as request:
                trace.allowance = allowance = trace.serving.access.allowance(trace.caller, trace.attempts.sent)
                async with allowance:
                    await self._steps(trace, request, allowance, scope, receive, send)
        except RequestError as error:
            trace.failed(error)
            error.drop_frames()
            await self._refuse(error, trace, send)
        except ClientLeftError:
            trace.outcome, trace.client_left = "aborted", True
        except Exception:
            complete, trace.outcome = trace.outcome == "ok", "internal_error"
            _log.exception("a request failed", extra={"request_id": trace.request_id})
            if not complete:
                message = "internal error; the gateway's own log names it under this request id"
                await self._refuse(RequestError(message), trace, send)
        finally:
            self._record(trace)  # 8

    async def _steps(
        self, trace: Trace, request: ActiveRequest, allowance: Allowance, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Steps 1 to 7. Requests that pass through skip 3 and 5; one that the cache answers skips 3 to 6."""
        composition = trace.serving.composition
        with trace.step("admit"):  # 1
            body = await request.admit(scope, receive, forms=self._dialect.forms)
        with trace.step("parse"):  # 2
            chat, options = await self._parse(trace, request, scope, body)
            body_bytes = len(body)
            del body  # the parsed chat replaces it in memory
            if self._stored is not None:
                chat = await self._continued(self._stored, trace, request, chat, body_bytes)
            if options.tenant is not None and chat.api in TRANSLATED_APIS:
                check_owned(chat)
        reply: Reply | None = None
        if self._cache is not None:
            reply = await self._cache.lookup(trace, path=scope["path"], body_bytes=body_bytes)
        with self._keep_alive(trace, send) if chat.stream else _NO_KEEP_ALIVE as stream:
            if reply is None:
                await allowance.reserve(chat, options.recipe, size=body_bytes)
                conversation, previous = NO_CONVERSATION, NO_PREVIOUS
                if chat.api in PASS_THROUGH_APIS:
                    with trace.step("assign"):
                        trace.decision = composition.assign_general(chat, options)
                else:
                    with trace.step("classify"):  # 3
                        trace.routed, trace.prediction = await composition.classifier.classify(
                            chat, options.rule, options.rules
                        )
                    with trace.step("assign"):  # 4
                        conversation, previous = await _assign(trace, chat, options)
                    with trace.step("retrieve"):  # 5
                        if composition.retrieves:
                            chat = await _retrieve(trace, chat, options, previous)
                with trace.step("call"):  # 6
                    answer = await _call(trace, chat, options, conversation, previous, deadline=request.deadline)
                reply = _accept(trace, request, answer, chat)
                del chat, answer
            with trace.step("relay"):  # 7
                await _relay(self._shown(reply, trace), trace, request, send, stream)

    def _record(self, trace: Trace) -> None:
        """Step 8: report a finished request to the observers, however it ended."""
        if self._stored is not None and trace.stored is not None:
            self._stored.release(trace.stored)
        for observe in self._observers:
            try:
                observe(trace)
            except Exception:
                _log.exception("an observer failed", extra={"request_id": trace.request_id})

    async def _parse(
        self, trace: Trace, request: ActiveRequest, scope: Scope, body: bytes | bytearray
    ) -> tuple[Chat, RequestOptions]:
        """Return the chat with its resolved model, and its options with the rules that match."""
        assert trace.options is not None
        deployment = scope["path_params"].get(DEPLOYMENT, "") if "path_params" in scope else ""
        parse = partial(self._dialect.parse, body, model=deployment)
        trace.chat = chat = await request.parse(parse, size=len(body))
        trace.requested_model = chat.model
        chat, options = resolve_model(chat, trace.options, trace.serving.registry, scope["headers"])
        if (rules := trace.serving.composition.rules) is not None:
            model = trace.requested_model
            options = with_rules(chat, options, rules, scope["headers"], caller=trace.caller, model=model)
        trace.chat, trace.options = chat, options
        return chat, options

    async def _continued(
        self, step: StoredStep, trace: Trace, request: ActiveRequest, chat: Chat, body_bytes: int
    ) -> Chat:
        """Return the chat with the stored answers that it refers to in place of its references."""
        assert trace.options is not None
        registry = trace.serving.registry
        trace.chat, trace.stored = await step.continued(chat, trace.options, registry, request, body_bytes=body_bytes)
        return trace.chat

    def _shown(self, reply: Reply, trace: Trace) -> Reply:
        """The reply as the client gets it: with citations of passages, and stored if the request may refer to it."""
        if passages := trace.retrieval_result.passages:
            reply = cited(reply, passages, trace.api)
        if self._stored is not None and trace.stored is not None:
            reply = self._stored.relayed(reply, trace.stored)
        return reply

    def _keep_alive(self, trace: Trace, send: Send) -> KeepAlive:
        interval = trace.serving.registry.policy.keep_alive_interval
        return KeepAlive(trace, send, event=self._dialect.keep_alive, interval=interval)

    def _read_head(self, trace: Trace, scope: Scope) -> RequestOptions:
        """Identify the caller and return the options of the headers. Raises Unauthorized, Forbidden, InvalidRequest."""
        serving, headers = trace.serving, scope["headers"]
        trace.caller = caller = serving.access.identify(headers, "chat")
        policy = serving.registry.policy
        options = read_options(scope, policy, tenant=caller.tenant, api=trace.api, rule=caller.rule)
        if options.purpose and not serving.access.is_admin(headers):
            options = replace(options, purpose=None)  # an ordinary key cannot hide its requests from reports
        return options

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
        trace.status = status_of(error)
        await respond(send, status=trace.status, body=self._dialect.error_body(error), headers=headers)


async def _assign(trace: Trace, chat: Chat, options: RequestOptions) -> tuple[Conversation, Previous]:
    """Decide on the expert. Return the conversation of the request, and the expert that answered there before."""
    composition, prediction = trace.serving.composition, trace.prediction
    assert prediction is not None
    conversation = read_conversation(chat, options, trace.routed.requests)
    previous = await composition.find_previous(conversation, trace.routed)
    trace.decision = composition.assign(chat, prediction, options, previous=previous)
    return conversation, previous


async def _retrieve(trace: Trace, chat: Chat, options: RequestOptions, previous: Previous) -> Chat:
    """Return the chat, with passages if the gate opens. The decision may change if it relied on passages."""
    assert trace.decision is not None
    assert trace.prediction is not None
    chat, trace.decision, trace.retrieval_result = await trace.serving.composition.retrieve(
        chat,
        trace.decision,
        options,
        routed=trace.routed,
        prediction=trace.prediction,
        tenant=trace.caller.tenant,
        previous=previous,
    )
    return chat


async def _call(
    trace: Trace,
    chat: Chat,
    options: RequestOptions,
    conversation: Conversation,
    previous: Previous,
    *,
    deadline: float,
) -> RoutedReply:
    assert trace.decision is not None
    return await trace.serving.composition.call(
        chat,
        trace.decision,
        options,
        deadline=deadline,
        attempts=trace.attempts,
        prediction=trace.prediction,
        conversation=conversation,
        previous=previous,
    )


def _accept(trace: Trace, request: ActiveRequest, answer: RoutedReply, chat: Chat) -> Reply:
    """Note the answer that has begun, and free the data that only its call needed. Return the reply to relay."""
    trace.answered(answer)
    if request.memory:  # the expert has the large body
        trace.chat = chat.without_content()
        request.release_body()
    return answer.reply if trace.cache is None else CapturedReply(answer.reply, trace.cache)


async def _relay(reply: Reply, trace: Trace, request: ActiveRequest, send: Send, stream: KeepAlive | None) -> None:
    """Send the reply to its end and close it. Raises the ExpertError that breaks it off."""
    try:
        await relay(reply, send if stream is None else stream.send, trace)
        request.complete()
        trace.outcome = "ok"
    finally:
        await reply.aclose()


async def relay(reply: Reply, send: Send, trace: Trace) -> None:
    """Send a reply to its end. Raises the ExpertError that breaks it off; the headers of a stream are already sent.

    `send` waits for the socket: a client that reads slowly slows down the expert and uses no memory of this process.
    """
    if reply.media_type == JSON:
        body = b"".join([chunk async for chunk in reply.chunks()])
        trace.in_part = True
        await respond(send, status=200, body=body, headers=trace.headers())
        return
    await send(stream_head(trace.headers(), media_type=reply.media_type))
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            if len(chunk) > PIECE_BYTES:
                trace.in_part = True
                await _send_pieces(send, chunk, more=True)
                trace.in_part = False
            else:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def respond(send: Send, *, status: int, body: bytes, headers: Headers = ()) -> None:
    """Send a whole JSON response."""
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
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
