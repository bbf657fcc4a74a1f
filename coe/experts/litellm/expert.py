"""An expert through litellm: any provider, and Responses and Messages for a server that speaks chat alone.

An event loop in a thread of its own, for code that would hold up the loop that serves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias, TypeVar

import orjson

from coe.core import Api, Call, Health, Reply, Usage
from coe.errors import ConfigError, ExpertError, InvalidRequest
from coe.experts.api_formats import WIRES, count, empty_answer
from coe.experts.descriptors import out_of_descriptors
from coe.experts.error_mapping import ErrorMapping, connection_cause
from coe.experts.litellm.response_limits import Intake
from coe.experts.litellm.translation import arguments, named, passed, plain, says_something, written
from coe.registry import ExpertSpec
from coe.settings import Endpoint

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines in its thread, which begins with the first one and ends when nobody holds this object."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises; to cancel the wait cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._running()))

    def leave(self, work: Coroutine[Any, Any, None]) -> None:
        """Have a coroutine run without waiting for it; it must not raise."""
        asyncio.run_coroutine_threadsafe(work, self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(loop,), name=self._name, daemon=True).start()
                weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


REMEDY = "pip install 'coe[providers]'"
ASIDE_TIMEOUT = 1.0
"""Seconds for what litellm asks a provider beside the request (Ollama: for a model's size), all its streams waiting."""
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai")

Entry: TypeAlias = Callable[..., Awaitable[Any]]


class LitellmExpert:
    """Asks the declared provider; for an expert of another runtime, its OpenAI-compatible server at `endpoint`.

    Raises ConfigError (a declared provider) or InvalidRequest (a translation) where litellm is not installed.
    """

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint | None = None) -> None:
        provider = spec.runtime == "litellm"
        if find_spec("litellm") is None:
            if provider:
                raise ConfigError(f"expert {spec.name!r} has runtime litellm, which is not installed: {REMEDY}")
            message = f"expert {spec.name!r} speaks chat only and the translation is not installed here: {REMEDY}"
            raise InvalidRequest(message, code="unsupported_api")
        self.name = spec.name
        self.spec = spec
        key = spec.api_key.get_secret_value() if spec.api_key else ""
        self.faults = ErrorMapping(spec.name, key=key, base_url=endpoint.base_url if endpoint else "")
        self._settings: dict[str, Any] = {
            "model": spec.model if provider or endpoint is None else f"custom_openai/{endpoint.model}",
            "api_base": endpoint.base_url if endpoint else None,
            "api_key": key or (None if provider else "none"),  # its OpenAI client wants one
            "drop_params": True,  # what one provider lacks must not make a routed request fail there
            "max_retries": 0,
            "num_retries": 0,
        }

    async def stream(self, call: Call) -> Reply:
        """Ask, and return once the first piece is there. Raises an ExpertError, or InvalidRequest for what cannot be
        translated."""
        given = {**arguments(call, self.spec), **self._settings}
        given["timeout"] = call.first_token_timeout + call.stream_idle_timeout  # ours end before
        if headers := passed(call, self.spec):
            given["extra_headers"] = headers
        reply = _Streamed(self, call) if call.stream else _Plain(self, call)
        await self._import()
        try:
            async with asyncio.timeout(call.first_token_timeout) as limit:
                await _aside().run(reply.begin(given))
        except BaseException as error:
            reply.let_go()
            if isinstance(error, TimeoutError) and limit.expired():
                raise self.faults.late(
                    f"gave no {'first chunk' if call.stream else 'answer'} within {call.first_token_timeout:g} s"
                ) from None
            raise
        return reply

    async def aclose(self) -> None:
        """Nothing of its own to close: litellm keeps its connections."""

    async def _import(self) -> None:
        """Import litellm. The first time this takes seconds that are not the provider's."""
        try:
            await _aside().run(_imported())
        except OSError as error:
            if out_of_descriptors(error):
                raise self.faults.no_descriptor() from None
            raise

    def fault(self, error: Exception, api: Api, excess: str = "") -> ExpertError:
        """litellm's exception as ours; it has many names for an `excess`."""
        if out_of_descriptors(error):
            return self.faults.no_descriptor()
        if excess:
            return self.faults.garbage(excess)
        if isinstance(error, ExpertError):
            return error
        fault = self._translated(error, api)
        if (cause := connection_cause(error)) not in (None, "connect_timeout"):  # httpx's own timeouts end in one too
            fault.cause = cause
        return fault

    def _translated(self, error: Exception, api: Api) -> ExpertError:
        status = getattr(error, "status_code", None)
        told = str(getattr(error, "message", error)).partition("Traceback (most")[0]
        reason = told.partition("Exception - ")[2] or told  # after litellm's own names of it
        if isinstance(status, str):  # the code of an error that came under HTTP 200
            return self.faults.failed("answered with an error", reason)
        if not isinstance(status, int) or (status >= 500 and _stumbled(error)):
            garbage = self.faults.garbage(f"something that litellm cannot read ({type(error).__name__})")
            garbage.unhealthy = False  # as likely it was the client's body that litellm could not read
            return garbage
        if status == 408:
            return self.faults.late("did not answer in time")
        response = getattr(error, "response", None)
        headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
        return self.faults.refusal(status, headers, reason.encode("utf-8", "replace"), api=api)


def _stumbled(error: BaseException) -> bool:
    """Whether litellm itself fell over what the client or the server sent, which it gives status 500."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return isinstance(error, (AttributeError, LookupError, TypeError, UnicodeError))


class _Plain:
    """An answer that comes in one piece."""

    media_type = "application/json"

    def __init__(self, expert: LitellmExpert, call: Call) -> None:
        self._expert = expert
        self._api = call.api
        self._intake = Intake(stream=False)
        self._body = b""
        self.usage = Usage()

    async def begin(self, given: dict[str, Any]) -> None:
        """Runs aside."""
        self._intake.begin()
        try:
            answer = named(plain(await _entries()[self._api](**given)), self._expert.name)
        except Exception as error:
            fault = self._expert.fault(error, self._api, self._intake.excess)
            raise fault from None  # its traceback may hold the prompt
        if WIRES[self._api].answer not in answer:
            raise self._expert.faults.garbage("something else than asked for")
        count(self.usage, answer.get("usage"))
        self._body = orjson.dumps(answer)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    def let_go(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""


class _Streamed:
    """An answer that comes event by event. What is iterated lives aside; only bytes come over."""

    media_type = "text/event-stream"

    def __init__(self, expert: LitellmExpert, call: Call) -> None:
        self._expert = expert
        self._call = call
        self._wire = WIRES[call.api]
        self._intake = Intake(stream=True)
        self._source: Any = None
        self._first = b""
        self._left = False
        self._said = False
        self._whole = False
        self._ended = False
        options = call.fields.get("stream_options")
        self._counted = isinstance(options, dict) and options.get("include_usage") is True
        self.usage = Usage()

    async def begin(self, given: dict[str, Any]) -> None:
        """Runs aside."""
        self._intake.begin()
        try:
            self._source = aiter(await _entries()[self._call.api](**given))
        except Exception as error:
            raise self._expert.fault(error, self._call.api, self._intake.excess) from None
        while not (self._said or self._left or self._ended):
            self._first += await self._next()
        if self._left:  # litellm may lose a cancellation and go on; nobody else will close what it opened
            await _close(self._source)
        elif not self._said and not empty_answer(self.usage):
            raise self._expert.faults.broken("ended the stream before the first event")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._first
        try:
            while not self._ended:
                async with asyncio.timeout(self._call.stream_idle_timeout):
                    chunk = await _aside().run(self._next())
                if chunk:
                    yield chunk
        except TimeoutError:
            raise self._expert.faults.late(f"fell silent for {self._call.stream_idle_timeout:g} s") from None
        self._source = None
        if not self._whole:
            raise self._expert.faults.broken("ended the stream before the answer was complete")
        if self._wire.end:
            yield self._wire.end

    def let_go(self) -> None:
        self._left = True
        if self._source is not None:
            _aside().leave(_close(self._source))

    async def aclose(self) -> None:
        if self._source is not None:
            await _aside().run(_close(self._source))

    async def _next(self) -> bytes:
        """The next event that the client is to see, nothing at the end. Runs aside."""
        try:
            async for item in self._source:
                if chunk := self._event(named(plain(item), self._expert.name)):
                    return chunk
        except Exception as error:
            raise self._expert.fault(error, self._call.api, self._intake.excess) from None
        self._ended = True
        return b""

    def _event(self, event: dict[str, Any]) -> bytes:
        chunk = written(event)
        if told := self._wire.failure(chunk):
            where = "failed in mid-answer" if self._said else "answered with an error"
            raise self._expert.faults.failed(where, told)
        for tokens in self._wire.usages(chunk):
            count(self.usage, tokens)
        self.usage.events += 1
        self._said = self._said or says_something(event)
        self._whole = self._whole or self._wire.done(chunk) or self._wire.finished(chunk)
        hidden = self._call.api == "chat" and not self._counted and not event.get("choices")
        return b"" if hidden else chunk


async def _close(source: Any) -> None:
    with suppress(Exception):  # it may be closing already, by the cancellation of what waited for it
        await source.aclose()


@cache
def _aside() -> BackgroundLoop:
    """One for the process, as litellm's own state is: importing it takes seconds, and each call milliseconds."""
    return BackgroundLoop("litellm")


async def _imported() -> None:
    _entries()


@cache
def _entries() -> dict[Api, Entry]:
    """litellm, imported at the first need, quiet and without a look at the network; one function an API.

    Messages go through its translation to chat also where a provider speaks them: litellm's own path to those imports
    its proxy, and goes on reading a stream that the client has left.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # in its other mode it reads .env files
    import litellm
    from litellm.llms.anthropic.messages.adapters.handler import LiteLLMMessagesToCompletionTransformationHandler
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    from coe.experts.litellm.response_limits import bound_clients

    bound_clients()
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.user_url_validation = True  # it fetches images for some providers: never from this network
    litellm.module_level_client = HTTPHandler(timeout=ASIDE_TIMEOUT)
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")  # they quote what models write
    for name in _LOGGERS:  # they would tell prompts, and addresses with keys in them
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return {
        "chat": litellm.acompletion,
        "responses": litellm.aresponses,
        "messages": LiteLLMMessagesToCompletionTransformationHandler.async_anthropic_messages_handler,
        "embeddings": litellm.aembedding,
    }
