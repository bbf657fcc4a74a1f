"""An expert behind an OpenAI-compatible server: the hot path, bytes in and bytes out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import orjson

from coe.core import Call, Reply, Standing, Usage
from coe.errors import ExpertError, ExpertGarbage, ExpertRejected, ExpertTimeout, ExpertUnavailable, InvalidRequest
from coe.experts import sse
from coe.registry import ExpertSpec
from coe.settings import Endpoint

MAX_ANSWER = 64 * 2**20
"""Bytes of a plain (not streamed) answer."""
CONNECT_TIMEOUT = 5.0
LARGE_BODY = 2**20
LONGEST_FIELD_NAME = 64
MAX_PREAMBLE = 2**20
"""Bytes of an event stream until the first event that says something."""
_CLIENTS_FAULT = frozenset({400, 413, 415, 422})


def open_session() -> aiohttp.ClientSession:
    """The connection pool all experts of a process share; admission bounds how many connections are in use."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        auto_decompress=True,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class HttpExpert:
    """Speaks Chat Completions to `endpoint`. Adds the declared system prompt, default parameters and model name."""

    standing = Standing()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint, *, session: aiohttp.ClientSession) -> None:
        self.name = spec.name
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._model = endpoint.model
        theirs, ours = orjson.dumps(endpoint.model), orjson.dumps(spec.name)
        self._echoes = [(key + theirs, key + ours) for key in (b'"model":', b'"model": ')]
        self._parameters = spec.parameters
        self._system_prompt = spec.system_prompt
        self._session = session
        self._headers = {"content-type": "application/json"}
        if spec.api_key:
            self._headers["authorization"] = f"Bearer {spec.api_key.get_secret_value()}"

    async def stream(self, call: Call) -> Reply:
        """Ask, and return once the first piece is there. Raises an ExpertError, or InvalidRequest for the body."""
        body = self._body(call.fields)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(call.first_piece_timeout) as limit:
                response = await self._session.post(
                    self._url, data=_paced(body), headers=self._headers, allow_redirects=False
                )
                if response.status != 200:
                    raise await self._refusal(response)
                reply = _Streamed(self, response, call.piece_timeout) if call.stream else _Plain(self, response)
                await reply.begin()
                return reply
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError) and limit.expired():
                message = f"expert {self.name!r} gave no first piece within {call.first_piece_timeout:g} s"
                raise ExpertTimeout(message, expert=self.name) from None
            if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):  # ValueError: a host no name can be
                raise self.broken("cannot be reached") from error
            raise

    async def aclose(self) -> None:
        """Nothing of its own to close: the session belongs to whoever opened it."""

    def broken(self, what: str) -> ExpertUnavailable:
        """The error for a connection that failed or broke off."""
        return ExpertUnavailable(f"expert {self.name!r} {what}", expert=self.name)

    def renamed(self, piece: bytes) -> bytes:
        """The client knows the expert by its name, not by what the server calls the model (often a folder)."""
        for theirs, ours in self._echoes:
            piece = piece.replace(theirs, ours)
        return piece

    def _body(self, fields: Mapping[str, Any]) -> bytes:
        body = {**self._parameters, **fields, "model": self._model}
        if self._system_prompt:
            body["messages"] = with_system_prompt(fields["messages"], self._system_prompt)
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
            raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> ExpertError:
        told = _told(await response.content.read(64 * 1024))
        status = response.status
        if status in _CLIENTS_FAULT:
            message = f"expert {self.name!r} rejected the request: {told}"
            return ExpertRejected(message, expert=self.name, status=status)
        if status in (401, 403):
            return self.broken(f"refused its api_key (HTTP {status}); check it in experts.yaml")
        return self.broken(f"answered HTTP {status}: {told}")


class _Plain:
    """An answer that comes in one piece."""

    media_type = "application/json"

    def __init__(self, expert: HttpExpert, response: aiohttp.ClientResponse) -> None:
        self._expert = expert
        self._response = response
        self._body = b""
        self.usage = Usage()

    async def begin(self) -> None:
        if (self._response.content_length or 0) > MAX_ANSWER:
            raise self._garbage("an answer longer than it may be")
        chunks, size = [], 0
        async for chunk in self._response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER:
                raise self._garbage("an answer longer than it may be")
        self._body = b"".join(chunks)
        try:
            answer = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            raise self._garbage("something that is not JSON") from None
        if not isinstance(answer, dict) or "choices" not in answer:
            raise self._garbage("JSON without choices")
        _count(self.usage, answer.get("usage"))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield self._expert.renamed(self._body)

    async def aclose(self) -> None:
        self._response.release()

    def _garbage(self, what: str) -> ExpertGarbage:
        return ExpertGarbage(f"expert {self._expert.name!r} answered {what}", expert=self._expert.name)


class _Streamed:
    """An answer that comes as server-sent events. Ends with [DONE] even where the server forgets it."""

    media_type = "text/event-stream"

    def __init__(self, expert: HttpExpert, response: aiohttp.ClientResponse, piece_timeout: float) -> None:
        self._expert = expert
        self._response = response
        self._piece_timeout = piece_timeout
        self._buffer = sse.EventBuffer()
        self._first = b""
        self._finished = False
        self._done = False
        self.usage = Usage()

    async def begin(self) -> None:
        if self._response.content_type != "text/event-stream":
            raise self._garbage(f"{self._response.content_type} where an event stream was asked for")
        event = None
        while event is None and not self._done:  # comments keep a connection alive; they are no answer
            chunk = await self._response.content.readany()
            if not chunk:
                raise self._expert.broken("ended the stream before the first event")
            self._first = (self._first + self._complete(chunk)).lstrip(b"\r\n")
            event = self._event(self._first)
            if event is None and len(self._first) > MAX_PREAMBLE:
                raise self._garbage("comments without end")
        if told := sse.error(self._first):
            raise self._expert.broken(f"answered with an error: {_message_of(told)}")
        self._note(self._first)

    def _event(self, events: bytes) -> Any:
        """The first event that says something, None while there is none."""
        rest = self._buffer.rest.lstrip()
        if not events and len(rest) > LONGEST_FIELD_NAME and not rest.startswith(_EVENT_STARTS):
            raise self._garbage("something that is not an event stream")
        try:
            event = sse.first_event(events) if events else None
        except ValueError as error:
            raise self._garbage(f"a broken event stream ({error})") from None
        self._done = sse.done(events)
        return event

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield self._expert.renamed(self._first)
        try:
            while not self._done:
                async with asyncio.timeout(self._piece_timeout):
                    chunk = await self._response.content.readany()
                if not chunk:
                    break
                if events := self._complete(chunk):
                    if told := sse.error(events):
                        raise self._expert.broken(f"failed in mid-answer: {_message_of(told)}")
                    self._note(events)
                    yield self._expert.renamed(events)
        except TimeoutError:
            message = f"expert {self._expert.name!r} fell silent for {self._piece_timeout:g} s"
            raise ExpertTimeout(message, expert=self._expert.name) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._expert.broken("broke off the stream") from error
        if not self._done:
            if not self._finished:
                raise self._expert.broken("ended the stream before the answer was complete")
            yield sse.DONE

    async def aclose(self) -> None:
        if self._done:
            self._response.release()
        else:
            self._response.close()  # the connection is in mid-answer: dropping it tells the server to stop

    def _complete(self, chunk: bytes) -> bytes:
        try:
            return self._buffer.feed(chunk)
        except ValueError as error:
            raise self._garbage(f"a broken event stream ({error})") from None

    def _note(self, events: bytes) -> None:
        self._finished = self._finished or sse.finished(events)
        self._done = sse.done(events)
        if found := sse.usage(events):
            _count(self.usage, found)

    def _garbage(self, what: str) -> ExpertGarbage:
        return ExpertGarbage(f"expert {self._expert.name!r} answered {what}", expert=self._expert.name)


_EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


def _paced(body: bytes) -> bytes | io.BytesIO:
    """A large body is written chunk by chunk, so that one client cannot hold up the event loop for the others."""
    return body if len(body) < LARGE_BODY else io.BytesIO(body)


def with_system_prompt(messages: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """The messages with `prompt` first, joined to the client's own system prompt: many chat templates know only one."""
    head = messages[0]
    if head["role"] not in ("system", "developer"):
        return [{"role": "system", "content": prompt}, *messages]
    content = head.get("content")
    if isinstance(content, list):
        merged: Any = [{"type": "text", "text": prompt}, *content]
    else:
        merged = f"{prompt}\n\n{content}" if content else prompt
    return [{**head, "content": merged}, *messages[1:]]


def _count(usage: Usage, told: Any) -> None:
    if isinstance(told, dict):
        for name, key in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
            if isinstance(told.get(key), int):
                setattr(usage, name, told[key])


def _told(body: bytes) -> str:
    """What an error body says, in one line of bounded length."""
    try:
        message = _message_of(orjson.loads(body))
    except orjson.JSONDecodeError:
        message = body.decode("utf-8", "replace")
    return " ".join(message.split())[:500] or "no reason given"


def _message_of(error: Any) -> str:
    """The reason inside an error body, however it is wrapped: servers send anything."""
    for _ in range(4):
        if not isinstance(error, dict):
            break
        error = next((error[key] for key in ("error", "message", "detail") if error.get(key)), "no reason given")
    try:
        return str(error)
    except RecursionError:
        return "no readable reason"
