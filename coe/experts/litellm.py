"""Calls an expert through litellm, which supports providers that have no OpenAI-compatible or Anthropic API.

litellm serves chat and embeddings only. Importing it takes seconds and each call blocks for milliseconds, so it runs in
a separate thread with its own event loop, the background loop. litellm returns objects, so this module serializes its
replies to bytes. Only the API's own fields pass, because litellm reads its settings from the same arguments.
`coe.experts.factory` imports this module only when it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import httpx
import orjson

from coe.core import Api, Call, Health, Reply
from coe.errors import ConfigError, ExpertError, InvalidRequest, pip_install
from coe.experts.api_formats import API_FORMATS, applicable_defaults, record_usage
from coe.experts.error_mapping import ErrorMapping, connection_cause
from coe.experts.http.replies import (
    MAX_ANSWER_BYTES,
    HeldAnswer,
    ModelNameRewriter,
    StreamedReply,
    WholeReply,
    shows_usage,
)
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.usage import SentCall, Usage

_NAMES: Mapping[Api, str] = {
    "chat": "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
    "messages modalities n parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop "
    "stream_options temperature thinking tool_choice tools top_logprobs top_p user verbosity",
    "embeddings": "dimensions encoding_format input user",
}
FIELDS: Mapping[Api, frozenset[str]] = {api: frozenset(names.split()) for api, names in _NAMES.items()}
"""Request fields that pass. litellm reads its own settings (api_base, mock_response, fallbacks and many more) from the
same arguments; otherwise a client could send the expert's key to its own address."""


def litellm_arguments(call: Call, spec: ExpertSpec) -> dict[str, Any]:
    """The declared parameters, then the client's fields, then the expert's system prompt. Raises InvalidRequest for
    what cannot be translated."""
    if call.api not in FIELDS:
        message = f"expert {spec.name!r} cannot answer the {call.api} API"
        raise InvalidRequest(message, param="model", code="unsupported_api")
    api_format = API_FORMATS[call.api]
    fields = {name: call.fields[name] for name in FIELDS[call.api] & call.fields.keys()}
    arguments = {**applicable_defaults(api_format.defaults(spec.parameters), fields), **fields}
    if spec.system_prompt:
        arguments |= api_format.system_prompt_fields(arguments, spec.system_prompt)
    if call.api == "chat" and call.stream:
        arguments["stream_options"] = {"include_usage": True}  # for CoE's own counts
    if call.api != "embeddings":
        arguments["stream"] = call.stream
    return arguments


def plain(item: Any, *, name: str) -> dict[str, Any]:
    """An item of litellm (a pydantic model or a mapping) in JSON types, with the expert's name as the model's."""
    if not isinstance(item, dict):
        item = item.model_dump(mode="json", exclude_none=True, warnings=False)
    answer: dict[str, Any] = item
    for choice in answer.get("choices", ()):  # OpenAI sends these two even if they are null
        choice.setdefault("finish_reason", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
    if "model" in answer:
        answer["model"] = name
    return answer


T = TypeVar("T")
REMEDY = pip_install("providers")
SIDE_REQUEST_TIMEOUT = 1.0
"""Timeout in seconds of litellm's own extra requests (Ollama: the model's size), which block all litellm streams."""
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai")


class LitellmExpert:
    """Calls the declared provider, at `endpoint` if it is not the provider's own. Raises ConfigError if litellm is not
    installed."""

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint | None = None) -> None:
        if find_spec("litellm") is None:
            raise ConfigError(f"expert {spec.name!r} has runtime litellm, which is not installed: {REMEDY}")
        self.name = spec.name
        self.spec = spec
        key = spec.api_key.get_secret_value() if spec.api_key else ""
        self.errors = ErrorMapping(spec.name, key=key, base_url=endpoint.base_url if endpoint else "")
        self._settings: dict[str, Any] = {
            "model": spec.model,
            "api_base": endpoint.base_url if endpoint else None,
            "api_key": key or None,
            "drop_params": True,  # a field that the routed provider lacks must not fail the request
            "max_retries": 0,
            "num_retries": 0,
        }

    async def stream(self, call: Call) -> Reply:
        """Calls the provider; returns once the first chunk has arrived. Raises an ExpertError, or InvalidRequest for
        another API."""
        arguments = {**litellm_arguments(call, self.spec), **self._settings}
        arguments["timeout"] = call.first_token_timeout + call.stream_idle_timeout  # a backstop: those below end before
        if call.headers:
            arguments["extra_headers"] = dict(call.headers)
        await _in_background(_load_entry_points())  # the first time takes seconds, which do not count
        record, held = SentCall(self.name), HeldAnswer(call.memory)
        call.sent.append(record)
        try:
            async with asyncio.timeout(call.first_token_timeout) as limit:
                if call.stream:
                    return await self._streamed(call, arguments, record.usage, held)
                body = await _in_background(self._whole(call.api, arguments, record.usage))
                return WholeReply(body, record.usage, held)
        except BaseException as error:
            held.resize(0)
            if isinstance(error, ExpertError) and not error.may_be_billed:
                call.sent.remove(record)
            if isinstance(error, TimeoutError) and limit.expired():
                what = "first chunk" if call.stream else "answer"
                raise self.errors.timed_out(f"gave no {what} within {call.first_token_timeout:g} s") from None
            raise

    async def _streamed(self, call: Call, arguments: dict[str, Any], usage: Usage, held: HeldAnswer) -> StreamedReply:
        events = _Events(self, call.api)
        try:
            await _in_background(events.open(arguments))
            reply = StreamedReply(
                events,
                api_format=replace(API_FORMATS[call.api], preamble=_has_no_content),
                errors=self.errors,
                rewriter=ModelNameRewriter(server_name=self.name, client_name=self.name),
                stream_idle_timeout=call.stream_idle_timeout,
                usage=usage,
                held=held,
                hides_usage=not shows_usage(call),
            )
            await reply.begin()
        except BaseException:  # also a cancellation just after the answer began
            events.release()
            raise
        return reply

    async def _whole(self, api: Api, arguments: dict[str, Any], usage: Usage) -> bytes:
        """The answer without a stream. Runs in the background loop."""
        try:
            answer = plain(await _entry_points()[api](**arguments), name=self.name)
            if API_FORMATS[api].answer_field not in answer:
                raise self.errors.invalid_response("something other than requested")
            record_usage(usage, answer.get("usage"))
            return orjson.dumps(answer)
        except Exception as error:  # its traceback may hold the prompt
            raise self.expert_error(error, api) from None

    def expert_error(self, error: Exception, api: Api) -> ExpertError:
        """Converts litellm's exception."""
        if isinstance(error, ExpertError):
            return error
        status = getattr(error, "status_code", None)
        message = str(getattr(error, "message", error)).partition("Traceback (most")[0]
        reason = message.partition("Exception - ")[2] or message  # without litellm's own prefix
        converted: ExpertError
        if isinstance(status, str):  # the code of an error with HTTP 200
            converted = self.errors.server_error("answered with an error", reason)
        elif status is None or (status >= 500 and _failed_inside_litellm(error)):
            converted = self.errors.invalid_response(f"something that litellm cannot read ({type(error).__name__})")
            converted.unhealthy = False  # it may have been the client's body
        elif status == 408:
            converted = self.errors.timed_out("did not answer in time")
        else:
            response = getattr(error, "response", None)
            headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
            converted = self.errors.refusal(status, headers, reason.encode("utf-8", "replace"), api=api)
        if (cause := connection_cause(error)) not in (None, "connect_timeout"):  # httpx's own timeouts look the same
            converted.cause = cause
        return converted


def _failed_inside_litellm(error: BaseException) -> bool:
    """True if litellm itself failed on the client's or server's data, which it reports as status 500."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return isinstance(error, (AttributeError, LookupError, TypeError, UnicodeError))


def _has_no_content(event: dict[str, Any]) -> bool:
    """True for an event without content. litellm opens and ends an answer even if it received none (a login page, an
    error with status 200)."""
    return not event.get("error") and not any(choice.get("delta") for choice in event.get("choices", ()))


class _Events:
    """litellm's answer as server-sent events. Its iterator stays in the background loop; bytes come over."""

    def __init__(self, expert: LitellmExpert, api: Api) -> None:
        self.complete = False
        self._expert = expert
        self._api = api
        self._source: Any = None

    async def open(self, arguments: dict[str, Any]) -> None:
        """Sends the request. Runs in the background loop."""
        try:
            self._source = aiter(await _entry_points()[self._api](**arguments))
        except Exception as error:
            raise self._expert.expert_error(error, self._api) from None
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # litellm may lose a cancellation
            await self._close()

    async def chunk(self, within: float | None = None) -> bytes:
        """Returns the next event, empty at the end. Raises an ExpertError, and TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            return await _in_background(self._next())

    async def _next(self) -> bytes:
        try:
            async for item in self._source:
                return b"data: %b\n\n" % orjson.dumps(plain(item, name=self._expert.name))
        except Exception as error:
            raise self._expert.expert_error(error, self._api) from None
        self.complete = True
        return b""

    def release(self) -> None:
        """Ends the answer."""
        if not self.complete:
            asyncio.run_coroutine_threadsafe(self._close(), _background_loop())

    async def _close(self) -> None:
        with suppress(Exception):  # nothing was opened, or a cancellation closes it already
            await self._source.aclose()


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    """The only background loop of the process, as litellm's state is global. It runs until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="litellm", daemon=True).start()
    return loop


async def _in_background(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the background loop; cancelling the wait cancels the coroutine."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _background_loop()))


async def _load_entry_points() -> None:
    _entry_points()


@cache
def _entry_points() -> dict[Api, Callable[..., Awaitable[Any]]]:
    """Imports and configures litellm: quiet, and without network access. Returns one function for each API."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # in its default mode it reads .env files
    import litellm
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

    AsyncHTTPHandler.create_client = _bounded(AsyncHTTPHandler.create_client)  # type: ignore[method-assign]
    HTTPHandler.create_client = _bounded(HTTPHandler.create_client)  # type: ignore[method-assign]
    litellm.in_memory_llm_clients_cache.flush_cache()  # type: ignore[no-untyped-call]
    litellm.aclient_session = AsyncHTTPHandler().create_client(timeout=None, event_hooks=None)  # of OpenAI's library
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.user_url_validation = True  # it fetches images for some providers: never from private addresses
    litellm.module_level_client = HTTPHandler(timeout=SIDE_REQUEST_TIMEOUT)
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")  # they quote model output
    for name in _LOGGERS:  # they log prompts, and URLs with keys
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return {"chat": litellm.acompletion, "embeddings": litellm.aembedding}


def _bounded(create: Callable[..., Any]) -> Callable[..., Any]:
    """Changes how litellm creates its HTTP clients: answers are bounded, as those of servers that CoE calls itself."""

    def create_client(*args: Any, **kwargs: Any) -> Any:
        client = create(*args, **kwargs)
        client.follow_redirects = False  # an undeclared address would receive the prompt
        client.headers["accept-encoding"] = "identity"
        if isinstance(client, httpx.AsyncClient):  # the other one serves side requests, of a second at most
            client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _bound]}
        return client

    return create_client


async def _bound(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("a compressed answer, which was not requested")
    response.stream = _BoundedBody(response.stream)


class _BoundedBody(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream, self.aclose = stream, stream.aclose  # type: ignore[method-assign]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            if (size := size + len(chunk)) > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer longer than {MAX_ANSWER_BYTES} bytes")
            yield chunk
