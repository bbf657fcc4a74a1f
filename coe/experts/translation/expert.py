"""`TranslatedExpert` answers Responses and Messages with an expert whose server speaks chat only.

Requests in other APIs, and in those that the server speaks, pass unchanged, except for the name of a limit that CoE has
set itself (`Call.renames_limit`). The answer's deltas are translated as they
arrive, with one builder for non-streaming answers and streams.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

from coe import json_text
from coe.core import Api, Call, Expert, Health, Reply
from coe.errors import ExpertRejected, InvalidRequest
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer, WholeReply
from coe.experts.http import sse
from coe.experts.translation import messages_request, responses_request
from coe.experts.translation.chat_answer import CallOrder, ChatReader
from coe.experts.translation.messages_answer import MessageBuilder
from coe.experts.translation.responses_answer import ResponseBuilder
from coe.registry import ExpertSpec

Event = dict[str, Any]
Builder: TypeAlias = ResponseBuilder | MessageBuilder
_OPTIONAL = ("reasoning_effort", "verbosity")
"""Fields of chat without which a request is sent again if a server rejects their value."""
_LENGTH, _NEWER_LENGTH = "max_tokens", "max_completion_tokens"
"""OpenAI's newer models reject the former; many other servers ignore the latter."""
_CLAUDE_HEADERS = ("anthropic-version", "anthropic-beta")


TRANSLATED_APIS: tuple[Api, ...] = ("responses", "messages")
MAX_DROPPED = 10
"""Types that `dropped_parts` names."""
_TYPE = re.compile(r"[a-z0-9_]{1,40}")


class TranslatedExpert:
    """Wraps `expert`, which answers in `spec.supported_apis`."""

    health = Health()

    def __init__(self, expert: Expert, spec: ExpertSpec) -> None:
        self.name = expert.name
        self._expert = expert
        self._claude = spec.runtime == "litellm" and "claude" in spec.model
        self._translated_apis = frozenset(api for api in TRANSLATED_APIS if is_translated(spec, api))
        self._errors = ErrorMapping(spec.name, key="")
        self._takes_newer_length = _NEWER_LENGTH in spec.parameters
        """True if the server rejects the older name of the limit, or if the declared limit has the newer one."""

    async def stream(self, call: Call) -> Reply:
        """Raises what the expert raises, and InvalidRequest for a request that cannot be translated."""
        if call.api not in self._translated_apis:
            limited = call.renames_limit and call.api == "chat"
            return await (self._accepted(call, optional=()) if limited else self._expert.stream(call))
        try:
            body, builder = self._request(call)
            opening = b"".join(map(_event, builder.begin())) if call.stream else b""
        except TypeError:  # a field in which the API has something else
            raise InvalidRequest("the request has a field of a wrong type") from None
        except RecursionError:
            raise _too_deep() from None
        headers = call.headers
        if not self._claude:
            headers = {name: value for name, value in headers.items() if name not in _CLAUDE_HEADERS}
        reply = await self._accepted(replace(call, api="chat", fields=body, headers=headers))
        if call.stream:
            return _StreamedReply(reply, builder, self._errors, opening=opening, held=HeldAnswer(call.memory))
        return await self._whole(reply, builder, HeldAnswer(call.memory))

    def _request(self, call: Call) -> tuple[dict[str, Any], Builder]:
        """The body for chat, and the builder of the answer."""
        if call.api == "responses":
            return responses_request.chat_fields(call.fields), ResponseBuilder(call.fields, model=self.name)
        body = messages_request.chat_fields(call.fields, claude=self._claude)
        return body, MessageBuilder(call.fields, model=self.name)

    async def aclose(self) -> None:
        await self._expert.aclose()

    async def _accepted(self, call: Call, *, optional: Sequence[str] = _OPTIONAL) -> Reply:
        """The reply to the call. A field that the server rejects by name is left out if `optional`, or renamed if it
        has another name. Of this only the newer name is kept for later calls, once it helped: whether a server rejects
        another field may depend on what else a request has."""
        if self._takes_newer_length:
            call = _with_newer_length(call)
        takes_newer_length, left_out = False, set[str]()
        while True:
            try:
                reply = await self._expert.stream(call)
            except ExpertRejected as error:
                if _rejects_older_length(call, error):
                    # A text may quote the request. Servers that ignore the newer name would lose the limits of all.
                    takes_newer_length = error.param is not None
                    call = _with_newer_length(call)
                elif name := _rejected_field(call, error, optional):
                    left_out.add(name)
                    call = replace(call, fields={key: value for key, value in call.fields.items() if key != name})
                else:
                    raise
            else:
                self._takes_newer_length |= takes_newer_length
                if call.dropped is not None:
                    call.dropped.update(left_out)
                return reply

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
        answer = builder.response if isinstance(builder, ResponseBuilder) else builder.message
        return WholeReply(_dumps(answer), reply.usage, held)


def is_translated(spec: ExpertSpec, api: Api) -> bool:
    """Returns whether an expert's requests in this API are translated. litellm is called for chat only."""
    return api in TRANSLATED_APIS and (spec.runtime == "litellm" or api not in spec.supported_apis)


def dropped_parts(api: Api, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the types of what the translation of a valid request leaves out."""
    if api not in TRANSLATED_APIS:
        return ()
    try:
        return reported_types((responses_request if api == "responses" else messages_request).dropped_parts(fields))
    except InvalidRequest:
        return ()


def reported_types(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns types as headers and records hold them, each once and at most MAX_DROPPED. A type that is not a word is
    `other`, since it could hold anything."""
    words = (kind if _TYPE.fullmatch(kind) else "other" for kind in kinds)
    return tuple(dict.fromkeys(words))[:MAX_DROPPED]


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
        reader, order, opening, size = ChatReader(), CallOrder(), self._opening, 0
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                events: list[Event] = []
                try:
                    for read in reader.deltas(chunk):
                        size += read.size
                        for delta in order.add(read):
                            events += self._builder.add(delta)
                except ValueError as error:
                    raise self._errors.invalid_response(f"a broken event stream ({error})") from None
                self._held.resize(size)
                if opening or events:
                    yield opening + b"".join(map(_event, events))
                opening = b""
        events = [event for delta in order.end() for event in self._builder.add(delta)]
        yield opening + b"".join(map(_event, [*events, *self._builder.end(self.usage)]))

    async def aclose(self) -> None:
        self._held.resize(0)
        await self._reply.aclose()


def _rejects_older_length(call: Call, error: ExpertRejected) -> bool:
    return _NEWER_LENGTH in str(error) and _LENGTH in call.fields and error.param in (None, _LENGTH)


def _rejected_field(call: Call, error: ExpertRejected, optional: Sequence[str]) -> str:
    """The optional field that the server rejects, empty if it rejects something else. The `param` of an error decides
    where there is one."""
    return next((name for name in optional if name in (error.param or str(error)) and name in call.fields), "")


def _with_newer_length(call: Call) -> Call:
    if _LENGTH not in call.fields:
        return call
    fields = dict(call.fields)
    return replace(call, fields={_NEWER_LENGTH: fields.pop(_LENGTH), **fields})


def _event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _dumps(event))


def _dumps(value: Any) -> bytes:
    try:
        return json_text.dumps(value)
    except RecursionError:  # what a response repeats of its request
        raise _too_deep() from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest("the body is nested too deeply", code="invalid_json")
