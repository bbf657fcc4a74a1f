"""An expert behind an HTTP server that speaks OpenAI's or Anthropic's APIs.

This is the hot path: the client's body passes through with the model name and the declared defaults changed, and
response bytes are relayed as they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

import orjson

from coe.core import PASS_THROUGH_APIS, TEXT_APIS, Api, Call, Health, Reply
from coe.errors import ExpertError, InvalidRequest
from coe.experts.api_formats import API_FORMATS, applicable_defaults, without_own_ids
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http import sse
from coe.experts.http.assembled import AssembledReply
from coe.experts.http.client import Client, Response, Target, Unreachable
from coe.experts.http.connection import LimitExceeded
from coe.experts.http.form import MODEL, FormBody
from coe.experts.http.relayed import RelayedReply
from coe.experts.http.replies import JsonReply, ModelNameRewriter, StreamedReply
from coe.registry import ExpertSpec, SelectingField
from coe.registry.runtimes import RUNTIMES
from coe.settings import Endpoint
from coe.urls import join_path, remove_suffix
from coe.usage import SentCall

MAX_REFUSAL_BYTES = 2**16
"""Bytes of an error body that are read."""
REFUSAL_TIMEOUT = 1.0
"""Seconds for the body of an error response."""
APIS_WITH_STREAM_OPTIONS: frozenset[Api] = frozenset(("chat", "completions"))
"""APIs whose streams report token counts only on request."""
USAGE_OPTION = ("stream_options", "include_usage")
UNKNOWN_OPTION_STATUSES = (400, 422)
"""Statuses with which servers reject an unknown field."""
_DEFAULT_VERSION = {"anthropic-version": "2023-06-01"}
"""Sent with Messages requests if the client names no version: their servers require one."""


class HttpExpert:
    """Calls one `endpoint`, each call in its own API. Adds the declared system prompt, default parameters, model name
    and key. Its server must speak the API of a call.
    """

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint, *, session: Client) -> None:
        self.name = spec.name
        self._base_url = endpoint.base_url
        self._model = endpoint.model
        self._rewriter = ModelNameRewriter(server_name=endpoint.model, client_name=spec.name)
        self._defaults = {api: api_format.defaults(spec.parameters) for api, api_format in API_FORMATS.items()}
        if spec.supported_apis & TEXT_APIS:  # the declared parameters are meant for these
            self._defaults |= {api: {} for api in self._defaults if api not in TEXT_APIS}
        self._system_prompt = spec.system_prompt
        unsent = {MODEL, *get_args(SelectingField)} - spec.allowed_fields
        self._unsent = frozenset(name.casefold() for name in unsent)
        """Names in lower case of the client's fields that are not sent, as they could select another model."""
        self._session = session
        self._queues = RUNTIMES[spec.runtime].queues
        self._key = spec.api_key.get_secret_value() if spec.api_key else ""
        self._targets: dict[Api, Target] = {}
        self._without_usage_option: set[Api] = set()
        """APIs in which this server does not know stream_options."""
        self._errors = ErrorMapping(spec.name, key=self._key, base_url=endpoint.base_url)

    async def stream(self, call: Call) -> Reply:
        """Calls the server; returns once the first chunk is there. Raises an ExpertError, or InvalidRequest for the
        body."""
        api = call.api
        headers = {**_DEFAULT_VERSION, **call.headers} if api == "messages" else call.headers
        if api in PASS_THROUGH_APIS:
            form = call.fields.content_type if isinstance(call.fields, FormBody) else "application/json"
            headers = {**headers, "content-type": form}
        sent = self._streamed(call) if self._queues and not call.stream else call
        response: Response | None = None
        record, held = SentCall(self.name), HeldAnswer(call.memory)
        limit = asyncio.get_running_loop().time() + call.first_token_timeout
        try:
            response = await self._accepted(sent, headers, limit, record)
            reply = self._reply(call, response, held, assembled=sent is not call)
            record.usage = reply.usage
            await reply.begin()
            response.lift_limit()
            return reply
        except BaseException as error:
            if response is not None:
                response.release()
            unbilled = isinstance(error, Unreachable) or (isinstance(error, ExpertError) and not error.may_be_billed)
            if unbilled and record in call.sent:
                call.sent.remove(record)
            held.resize(0)
            if isinstance(error, LimitExceeded):
                raise self._errors.timed_out(
                    f"gave no {'first chunk' if call.stream else 'answer'} within {call.first_token_timeout:g} s"
                ) from None
            if isinstance(error, (Unreachable, ValueError)):  # ValueError: an invalid address
                raise self._errors.unreachable(error) from error
            if isinstance(error, OSError):
                raise self._errors.connection_lost("broke off the connection") from error
            raise

    def _streamed(self, call: Call) -> Call:
        """Return a non-streaming call as a stream if its API has streams: an abandoned one would block the server."""
        if call.api not in APIS_WITH_STREAM_OPTIONS:
            return call
        return replace(call, stream=True, fields={**call.fields, "stream": True})

    async def _accepted(self, call: Call, headers: Mapping[str, str], limit: float, record: SentCall) -> Response:
        """Returns a response with status 200, or raises the refusal as an ExpertError, or LimitExceeded. If the server
        rejects the option for token counts, the request is sent again without it. Adds `record` to the sent calls."""

        def on_write() -> None:
            if record not in call.sent:
                call.sent.append(record)

        add_usage = call.stream and self._adds_usage(call)
        target, body = self._target(call.api), self._body(call, add_usage=add_usage)
        record.size = len(body)
        send = partial(self._session.send, target, headers=headers, limit=limit, on_write=on_write)
        response = await send(body)
        if add_usage and response.status in UNKNOWN_OPTION_STATUSES:
            refusal = await self._refusal(call, response)
            if not any(name in str(refusal) for name in USAGE_OPTION):
                raise refusal
            response = await send(self._body(call, add_usage=False))
            if response.status == 200:  # otherwise it rejected something else too
                self._without_usage_option.add(call.api)
        if response.status != 200:
            raise await self._refusal(call, response)
        return response

    async def _refusal(self, call: Call, response: Response) -> ExpertError:
        """The error for another status than 200. Releases the response."""
        try:
            body = await _refusal_body(response)
        finally:
            response.release()
        return self._errors.refusal(response.status, response.headers, body, api=call.api)

    async def aclose(self) -> None:
        """Does nothing: the session belongs to its opener."""

    def _target(self, api: Api) -> Target:
        if (target := self._targets.get(api)) is None:
            path = API_FORMATS[api].path
            base = remove_suffix(self._base_url, "/v1") if path.startswith("/") else self._base_url
            target = self._targets[api] = Target(join_path(base, path.removeprefix("/")), _headers(api, self._key))
        return target

    def _body(self, call: Call, *, add_usage: bool) -> bytes:
        if isinstance(call.fields, FormBody):
            return call.fields.with_model(self._model, leave_out=self._left_out(call, call.fields.names))
        fields = call.fields
        if left_out := self._left_out(call, fields):
            fields = {name: value for name, value in fields.items() if name not in left_out}
        defaults = self._defaults[call.api]
        body = {**applicable_defaults(defaults, fields), **fields, MODEL: self._model}
        if add_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if call.api == "responses" and "input" in body:
            body["input"] = without_own_ids(body["input"])
        if self._system_prompt:
            body |= API_FORMATS[call.api].system_prompt_fields(fields, self._system_prompt)
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
            raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error

    def _left_out(self, call: Call, names: Iterable[str]) -> list[str]:
        """The client's fields that are not sent and reported: they could select another model. Servers in Go (Ollama)
        ignore the case of names."""
        left_out = [name for name in names if name.casefold() in self._unsent and name != MODEL]
        if left_out and call.dropped is not None:
            call.dropped.update(map(str.casefold, left_out))
        return left_out

    def _adds_usage(self, call: Call) -> bool:
        """True if CoE requests the token counts of a stream, because the client does not."""
        return (
            call.api in APIS_WITH_STREAM_OPTIONS
            and call.api not in self._without_usage_option
            and not _shows_usage(call)
        )

    def _reply(
        self, call: Call, response: Response, held: HeldAnswer, *, assembled: bool
    ) -> JsonReply | StreamedReply | AssembledReply | RelayedReply:
        api_format, errors, rewriter = API_FORMATS[call.api], self._errors, self._rewriter
        if call.api in PASS_THROUGH_APIS:
            return RelayedReply(
                response, errors=errors, rewriter=rewriter, stream_idle_timeout=call.stream_idle_timeout, held=held
            )
        if not call.stream and not assembled:
            return JsonReply(response, api_format=api_format, errors=errors, rewriter=rewriter, held=held)
        if self._queues:
            api_format = replace(api_format, preamble=sse.has_no_content)  # it sends the role to waiting requests
        stream = StreamedReply(
            response,
            api_format=api_format,
            errors=errors,
            rewriter=rewriter,
            stream_idle_timeout=call.first_token_timeout if assembled else call.stream_idle_timeout,
            held=held,
            choices=_choices(call),
            with_usage=_shows_usage(call) if call.api in APIS_WITH_STREAM_OPTIONS and not assembled else None,
        )
        return AssembledReply(stream, errors=errors, held=HeldAnswer(call.memory)) if assembled else stream


async def _refusal_body(response: Response) -> bytes:
    """The body of an error response, as far as it arrives soon: the status alone decides what happens next."""
    body = bytearray()
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(REFUSAL_TIMEOUT):
            while len(body) < MAX_REFUSAL_BYTES and (chunk := await response.chunk()):
                body += chunk
    return bytes(body[:MAX_REFUSAL_BYTES])


def _shows_usage(call: Call) -> bool:
    """True if the client requested the token counts of the stream."""
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _choices(call: Call) -> int:
    """The number of requested choices; servers that accept an invalid number return one."""
    choices = call.fields.get("n")
    return choices if isinstance(choices, int) and choices > 1 else 1


def _headers(api: Api, key: str) -> dict[str, str]:
    headers = {} if api in PASS_THROUGH_APIS else {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
        if api == "messages":
            headers["x-api-key"] = key
    return headers
