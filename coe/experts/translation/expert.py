"""`TranslatedExpert` answers Responses and Messages with an expert whose server speaks chat only.

Requests in other APIs, and in those that the server speaks, pass unchanged. The answer's deltas are translated as they
arrive, with one builder for non-streaming answers and streams.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

from coe import json_text
from coe.core import TRANSLATED_APIS, Api, Call, Expert, Health, Reply
from coe.errors import InvalidRequest
from coe.experts.api_formats import reported_types
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http import sse
from coe.experts.http.replies import HeldAnswer, WholeReply
from coe.experts.translation import messages_api, responses_api
from coe.experts.translation.chat import ChatReader, Event
from coe.experts.translation.messages_api import MessageBuilder
from coe.experts.translation.responses_api import ResponseBuilder
from coe.registry import ExpertSpec

Builder: TypeAlias = ResponseBuilder | MessageBuilder
_OPTIONAL = frozenset(("max_tokens", "reasoning_effort", "verbosity"))
"""Fields of chat that are renamed or left out if a server rejects them."""
_CLAUDE_HEADERS = ("anthropic-version", "anthropic-beta")
WRONG_TYPE = (AttributeError, LookupError, RecursionError, TypeError)
"""Errors of reading a field whose value has another type than the API says."""


class TranslatedExpert:
    """Wraps `expert`, which answers in `spec.supported_apis`."""

    health = Health()

    def __init__(self, expert: Expert, spec: ExpertSpec) -> None:
        self.name = expert.name
        self._expert = expert
        self._translated_apis = frozenset(api for api in TRANSLATED_APIS if is_translated(spec, api))
        self._errors = ErrorMapping(spec.name, key="")

    async def stream(self, call: Call) -> Reply:
        """Raises what the expert raises, and InvalidRequest for a request that cannot be translated."""
        if call.api not in self._translated_apis:
            return await self._expert.stream(call)
        builder: Builder
        try:
            if call.api == "responses":
                body, builder = (
                    responses_api.chat_fields(call.fields),
                    ResponseBuilder(call.fields, model=self.name),
                )
            else:
                body, builder = messages_api.chat_fields(call.fields), MessageBuilder(model=self.name)
            opening = b"".join(map(_event, builder.begin())) if call.stream else b""
        except WRONG_TYPE:
            raise InvalidRequest("the request has a field of a wrong type, or is nested too deeply") from None
        headers = {name: value for name, value in call.headers.items() if name not in _CLAUDE_HEADERS}
        optional = _OPTIONAL & body.keys()
        reply = await self._expert.stream(replace(call, api="chat", fields=body, headers=headers, optional=optional))
        if call.stream:
            return _StreamedReply(reply, builder, self._errors, opening=opening, held=HeldAnswer(call.memory))
        return await self._whole(reply, builder, HeldAnswer(call.memory))

    async def _whole(self, reply: Reply, builder: Builder, held: HeldAnswer) -> Reply:
        try:
            async with aclosing(reply.chunks()) as chunks:
                body = b"".join([chunk async for chunk in chunks])
            builder.add(ChatReader().whole(json_text.loads(body)))
        except ValueError as error:
            raise self._errors.invalid_response(f"something other than a Chat Completions answer ({error})") from None
        finally:
            await reply.aclose()
        builder.end(reply.usage)
        return WholeReply(_dumps(builder.answer), reply.usage, held)


def is_translated(spec: ExpertSpec, api: Api) -> bool:
    """Returns whether an expert's requests in this API are translated. litellm is called for chat only."""
    return api in TRANSLATED_APIS and (spec.runtime == "litellm" or api not in spec.supported_apis)


def dropped_parts(api: Api, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the types of what the translation of a valid request leaves out."""
    if api not in TRANSLATED_APIS:
        return ()
    try:
        return reported_types((responses_api if api == "responses" else messages_api).dropped_parts(fields))
    except (InvalidRequest, *WRONG_TYPE):
        return ()


class _StreamedReply:
    """A translated stream."""

    media_type = sse.EVENT_STREAM

    def __init__(
        self, reply: Reply, builder: Builder, errors: ErrorMapping, *, opening: bytes, held: HeldAnswer
    ) -> None:
        self.usage = reply.usage
        self._opening = opening
        self._reply = reply
        self._builder = builder
        self._errors = errors
        self._held = held

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        reader, opening, size = ChatReader(), self._opening, 0
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                events: list[Event] = []
                try:
                    for delta in reader.deltas(chunk):
                        events += self._builder.add(delta)
                except ValueError as error:
                    raise self._errors.invalid_response(f"a broken event stream ({error})") from None
                size += len(chunk)  # the builder holds less than that
                self._held.resize(size)
                if opening or events:
                    yield opening + b"".join(map(_event, events))
                opening = b""
        yield opening + b"".join(map(_event, self._builder.end(self.usage)))

    async def aclose(self) -> None:
        self._held.resize(0)
        await self._reply.aclose()


def _event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _dumps(event))


def _dumps(value: Any) -> bytes:
    try:
        return json_text.dumps(value)
    except RecursionError:  # what a response repeats of its request
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
