"""An expert behind an HTTP server that speaks OpenAI's or Anthropic's APIs: the hot path, bytes in and bytes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import orjson

from coe.core import Api, Call, Health, Reply
from coe.errors import ExpertError, InvalidRequest
from coe.experts.api_formats import WIRES, Fields, unsaid
from coe.experts.descriptors import NoDescriptor
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http.client import Client, Response, Target, Unreachable
from coe.experts.http.replies import ModelNameRewriter, Plain, Streamed
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.urls import below

LONGEST_REFUSAL = 2**16
PATIENCE = 1.0
"""Seconds for the body of a refusal."""
STREAM_OPTIONS: frozenset[Api] = frozenset(("chat", "completions"))
"""APIs whose streams tell their tokens only on request."""
USAGE_OPTION = ("stream_options", "include_usage")
UNKNOWN_OPTION = (400, 422)
"""Statuses with which servers refuse a field that they do not know."""
_VERSION = {"anthropic-version": "2023-06-01"}
"""What Messages are taken to mean where the client does not say; their servers want to be told."""


class HttpExpert:
    """Speaks to one `endpoint`, each call in its own API. Adds the declared system prompt, default parameters, model
    name and key."""

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint, *, session: Client) -> None:
        self.name = spec.name
        self._urls = {api: below(endpoint.base_url, wire.path) for api, wire in WIRES.items()}
        self._model = endpoint.model
        self._echo = ModelNameRewriter(theirs=endpoint.model, ours=spec.name)
        self._defaults: dict[Api, Fields] = {api: wire.defaults(spec.parameters) for api, wire in WIRES.items()}
        if spec.supported_apis != {"embeddings"}:
            self._defaults["embeddings"] = {}  # what is declared is meant for chats
        self._system_prompt = spec.system_prompt
        self._session = session
        key = spec.api_key.get_secret_value() if spec.api_key else ""
        self._headers: dict[Api, dict[str, str]] = {api: _headers(api, key) for api in WIRES}
        self._targets: dict[Api, Target] = {}
        self._no_usage: set[Api] = set()
        """APIs in which this server does not know stream_options."""
        self._faults = ErrorMapping(spec.name, key=key, base_url=endpoint.base_url)

    async def stream(self, call: Call) -> Reply:
        """Ask, and return once the first piece is there. Raises an ExpertError, or InvalidRequest for the body."""
        api = call.api
        headers = {**_VERSION, **call.headers} if api == "messages" else call.headers
        response: Response | None = None
        try:
            async with asyncio.timeout(call.first_token_timeout) as limit:
                response = await self._accepted(call, headers)
                reply = self._reply(call, response)
                await reply.begin()
                return reply
        except BaseException as error:
            if response is not None:
                response.release()
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._faults.late(
                    f"gave no {'first chunk' if call.stream else 'answer'} within {call.first_token_timeout:g} s"
                ) from None
            if isinstance(error, NoDescriptor):
                raise self._faults.no_descriptor() from error
            if isinstance(error, (Unreachable, ValueError)):  # ValueError: an address that none can be
                raise self._faults.unreachable(error) from error
            if isinstance(error, OSError):
                raise self._faults.broken("broke off the connection") from error
            raise

    async def _accepted(self, call: Call, headers: Mapping[str, str]) -> Response:
        """An answer with status 200. Raises the refusal as an ExpertError. A server that does not know the option for
        token counts is asked again without it."""
        adds = self._adds_usage(call)
        response = await self._session.ask(self._target(call.api), self._body(call, add_usage=adds), headers)
        if adds and response.status in UNKNOWN_OPTION:
            refusal = await self._refusal(call, response)
            if not any(name in str(refusal) for name in USAGE_OPTION):
                raise refusal
            response = await self._session.ask(self._target(call.api), self._body(call, add_usage=False), headers)
            if response.status == 200:  # else the option was not what it refused, or not alone
                self._no_usage.add(call.api)
        if response.status != 200:
            raise await self._refusal(call, response)
        return response

    async def _refusal(self, call: Call, response: Response) -> ExpertError:
        """The error that another status than 200 stands for. Releases the response."""
        try:
            told = await _reason(response)
        finally:
            response.release()
        return self._faults.refusal(response.status, response.headers, told, api=call.api)

    async def aclose(self) -> None:
        """Nothing of its own to close: the session belongs to whoever opened it."""

    def _target(self, api: Api) -> Target:
        if (target := self._targets.get(api)) is None:
            target = self._targets[api] = Target(self._urls[api], self._headers[api])
        return target

    def _body(self, call: Call, *, add_usage: bool) -> bytes:
        body = {**unsaid(self._defaults[call.api], call.fields), **call.fields, "model": self._model}
        if add_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if self._system_prompt:
            body |= WIRES[call.api].prompted(call.fields, self._system_prompt)
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
            raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error

    def _adds_usage(self, call: Call) -> bool:
        """Whether to request the token counts of a stream that the client did not request."""
        return call.stream and call.api in STREAM_OPTIONS and call.api not in self._no_usage and not _shows_usage(call)

    def _reply(self, call: Call, response: Response) -> Plain | Streamed:
        wire, faults, echo = WIRES[call.api], self._faults, self._echo
        if not call.stream:
            return Plain(response, wire=wire, faults=faults, echo=echo)
        return Streamed(
            response,
            wire=wire,
            faults=faults,
            echo=echo,
            stream_idle_timeout=call.stream_idle_timeout,
            choices=_choices(call),
            hide_usage=call.api in STREAM_OPTIONS and not _shows_usage(call),
        )


async def _reason(response: Response) -> bytes:
    """What a server says to its refusal, as far as it comes soon: the status alone decides what is done next."""
    told = bytearray()
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(PATIENCE):
            while len(told) < LONGEST_REFUSAL and (chunk := await response.chunk()):
                told += chunk
    return bytes(told[:LONGEST_REFUSAL])


def _shows_usage(call: Call) -> bool:
    """Whether the client requested the token counts of the stream."""
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _choices(call: Call) -> int:
    """How many answers were asked for; a server that takes what is no number gives one."""
    told = call.fields.get("n")
    return told if isinstance(told, int) and told > 1 else 1


def _headers(api: Api, key: str) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
        if api == "messages":
            headers["x-api-key"] = key
    return headers
