"""The stored responses in the request path: the conversation before a request, and the storage of its answer.

`StoredStep.load_history` runs after a request is parsed: it replaces `previous_response_id` and item references by the
items that are stored, so that any expert can answer. `keep` holds the answer before its end is sent, so that a client
can refer to it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import orjson

from coe import json_text
from coe.core import Chat, Chunks, ExpertRule
from coe.errors import BodyTooLarge, InvalidRequest, ResponseNotFound, ResponsesUnavailable, StoreError
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.outage import RETRY_SECONDS, Outage
from coe.registry import Limits, StoredResponsesSpec
from coe.routing.decision import check_thread
from gateway.access.access import Caller
from gateway.dialects import responses
from gateway.request.admission import ActiveRequest
from gateway.request.body import INITIAL_COPIES, SMALL_BODY, JsonScan
from gateway.request.trace import Trace
from gateway.shared_store import SharedStore, open_store
from gateway.stored_responses import (
    MAX_ID_CHARACTERS,
    REFERENCE,
    Item,
    StoredUse,
    entries_of,
    is_id,
    is_permitted,
    is_storable,
    item_name,
    items_of,
    references,
    request_part,
    response_name,
)

P = ParamSpec("P")
T = TypeVar("T")

NotStored = Literal["size", "store"]
"""Why an answer is not stored: it is too long, or the store failed."""
NONE = "none"
"""The value of `stored_responses.store` that stores nothing."""
FILE = "stored-responses.sqlite"
MAX_REFERENCES = 2_000
"""References to items in one conversation."""
REMEDY = (
    "it was never stored (`store: false`), has expired, was deleted, belongs to another API key, or is of a request "
    "with x-coe-only-local, which only such a request may continue; send the conversation in `input`"
)
_ENDS = sse.EventTypes("response.completed", "response.incomplete")
_NO_ID = (b'"previous_response_id":null', b'"previous_response_id": null')


def response_store(spec: StoredResponsesSpec, home: Path) -> SharedStore | None:
    """Return the declared store, None without one. Raises ConfigError for an invalid address."""
    if spec.store == NONE:
        return None
    file, setting = home / FILE, "stored_responses.store"
    return open_store(spec.store, "responses", file=file, setting=setting, max_bytes=spec.max_bytes, durable=False)


@asynccontextmanager
async def open_stored_step(
    spec: StoredResponsesSpec, home: Path, *, count: Callable[[NotStored], None]
) -> AsyncIterator[StoredStep | None]:
    """The declared store, None without one. `count` is called for every answer that should have been stored and is not.
    Raises ConfigError for an invalid address."""
    store = response_store(spec, home)
    if store is None:
        yield None
        return
    try:
        yield StoredStep(store, lifetime=spec.lifetime, count=count)
    finally:
        await store.aclose()


STORE_SECONDS = 2.0
"""Time limit of one call of the store: an answer is held until it is stored."""


class StoredStep:
    """The stored responses of a process. After a failure of the store, all calls fail at once until the pause of
    `outage` is over."""

    def __init__(self, store: SharedStore, *, lifetime: float, count: Callable[[NotStored], None]) -> None:
        self.outage = Outage("stored responses", "; answers can neither be stored nor read")
        self.store = store
        self._lifetime = lifetime
        self._count = count

    async def load_history(self, trace: Trace, active: ActiveRequest, *, body_bytes: int) -> None:
        """Replaces the chat of the trace by one with the conversation that it continues, whose memory counts towards
        `active`. Raises InvalidRequest for an unknown id, BodyTooLarge, BodyMemoryFull and ResponsesUnavailable."""
        chat, fields, sent = trace.chat, dict(trace.chat.fields), items_of(trace.chat.fields)
        trace.stored = use = StoredUse(trace.caller.tenant or "", trace.options.rule)
        loading = _Loading(self, use, active, trace.snapshot.registry.limits, size=body_bytes)
        previous_id, items = fields.pop("previous_response_id", None), sent
        if previous_id is not None:
            items = [*await loading.conversation(previous_id), *sent]
        if wanted := references(items):
            items = await loading.resolve(items, wanted)
        if previous_id is not None or wanted:
            fields["input"], fields["model"] = items, chat.model
            trace.chat = await active.process(partial(responses.read, fields), size=loading.size)
        if fields.get("store") is not False:
            use.part = await active.process(partial(request_part, sent, use.previous, use.rule), size=body_bytes)
            if not use.part:
                self._count("size")

    async def keep(self, chunks: Chunks, use: StoredUse, *, media_type: str) -> AsyncGenerator[bytes, None]:
        """Passes the chunks of an answer on, which is stored before its last chunk is passed."""
        own_id = b'"previous_response_id":' + orjson.dumps(use.previous_id)
        async with aclosing(chunks):
            async for chunk in chunks:
                if use.part and (response := _answer_in(chunk, media_type)) is not None:
                    await self._store(use, response)
                if use.previous_id:  # the expert got the conversation instead, so its answer has none
                    for without in _NO_ID:
                        chunk = chunk.replace(without, own_id)
                yield chunk

    async def response(self, caller: Caller, response_id: str) -> Mapping[str, Any]:
        """Returns a stored answer. Raises ResponseNotFound and ResponsesUnavailable."""
        (found,) = await self.call(self.store.get, [response_name(response_id)], group=caller.tenant or "")
        entry = None if found is None else json_text.loads(found)
        if entry is None or not is_permitted(entry, caller.rule, reads=True):
            raise ResponseNotFound(f"no answer {response_id!r} is stored: {REMEDY}", param="id")
        response: Mapping[str, Any] = entry["response"]
        return response

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Deletes an answer and its items. Raises ResponseNotFound and ResponsesUnavailable."""
        output = (await self.response(caller, response_id))["output"]
        items = [item_name(item["id"]) for item in output if is_id(item.get("id"))]
        await self.call(self.store.delete, [response_name(response_id), *items], group=caller.tenant or "")

    async def _store(self, use: StoredUse, response: dict[str, Any]) -> None:
        """Stores an answer. If that is impossible, a gauge, the log and a count say so."""
        if not is_storable(response):
            return
        if use.previous_id:
            response["previous_response_id"] = use.previous_id
        entries = entries_of(response, use)
        if not entries:
            self._count("size")
            return
        try:
            await self.call(self.store.put, entries, ttl=self._lifetime, group=use.tenant)
        except ResponsesUnavailable:
            self._count("store")

    async def call(self, method: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """Calls a method of the store. Raises ResponsesUnavailable."""
        problem = f"it failed less than {RETRY_SECONDS:g} s ago"
        if not self.outage.pausing:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    result = await method(*args, **options)
                self.outage.ended()
                return result
            except (StoreError, TimeoutError) as error:
                problem = str(error) or f"no answer within {STORE_SECONDS:g} s"
                self.outage.began(problem)
        remedy = "try again, or send the conversation in `input`"
        message = f"the store of earlier answers is unavailable ({problem}); {remedy}"
        raise ResponsesUnavailable(message, retry_after=RETRY_SECONDS)


class _Loading:
    """Loads the stored values of one conversation under the limits of a request body.

    `size` is the bytes of the conversation so far. Sizes are compared with the limit before a value is fetched, so that
    neither long histories nor repeated references take memory before they are refused.
    """

    def __init__(self, step: StoredStep, use: StoredUse, active: ActiveRequest, limits: Limits, *, size: int) -> None:
        self.size = size
        self._step, self._use, self._active, self._limits = step, use, active, limits
        self._scan = JsonScan(max_values=limits.max_json_values)
        self._body_memory = active.memory

    async def conversation(self, response_id: Any) -> list[Item]:
        """The items before a request that continues this answer, whose ids `use` gets."""
        if not is_id(response_id):
            raise InvalidRequest("previous_response_id must be an id", param="previous_response_id")
        (head,) = await self._load({response_name(response_id): 1})
        if head is None:
            raise _unknown_response(response_id)
        previous = head["previous"]
        self._use.previous, self._use.previous_id = (*previous, response_id), response_id
        items: list[Item] = []
        entries = [*await self._load({response_name(one): 1 for one in previous}), head]
        for one, entry in zip(self._use.previous, entries, strict=True):
            if entry is None:
                raise _unknown_response(one)
            items += [*entry["input"], *entry["response"]["output"]]
        return items

    async def resolve(self, items: list[Item], wanted: Mapping[str, int]) -> list[Item]:
        """The items, with those that are stored in place of the references. `wanted` counts the references to each."""
        if sum(wanted.values()) > MAX_REFERENCES:
            message = f"the conversation has more than {MAX_REFERENCES} references to items; send the items in `input`"
            raise InvalidRequest(message, param="input")
        if not all(is_id(item.get("id")) for item in items if item.get("type") == REFERENCE):
            raise InvalidRequest("an item_reference in input must have the id of an item", param="input")
        entries = await self._load({item_name(one): count for one, count in wanted.items()})
        stored = dict(zip(wanted, entries, strict=True))
        if (missing := next((one for one, entry in stored.items() if entry is None), None)) is not None:
            raise _unknown_item(missing)
        return [stored[str(item["id"])]["item"] if item.get("type") == REFERENCE else item for item in items]

    async def _load(self, uses: Mapping[str, int]) -> list[Any]:
        """Returns the parsed entries, None for those that are not stored or not permitted. `uses` is how often the
        conversation has each name. Raises BodyTooLarge, BodyMemoryFull, InvalidRequest for too many JSON values, and
        ResponsesUnavailable."""
        if not uses:
            return []
        store, names, tenant = self._step.store, list(uses), self._use.tenant
        sizes = await self._step.call(store.sizes, names, group=tenant)
        size = sum(size * count for size, count in zip(sizes, uses.values(), strict=True))
        self.size += size
        limit = self._limits.max_body_mb
        if self.size > limit * 2**20:
            raise BodyTooLarge(f"the conversation has more than {limit:g} MiB; send what is still needed in `input`")
        self._reserve(self._scan.memory + INITIAL_COPIES * size)
        values = await self._step.call(store.get, names, group=tenant)
        for value, count in zip(values, uses.values(), strict=True):
            for _ in range(count):
                await self._active.process(partial(self._scan.feed, value or b""), size=self.size)
        self._reserve(self._scan.memory)
        return await self._active.process(partial(_permitted, values, self._use.rule), size=size)

    def _reserve(self, memory: int) -> None:
        if self.size > SMALL_BODY:
            self._active.reserve_memory(self._body_memory + memory)


def _permitted(values: Sequence[bytes | None], rule: ExpertRule | None) -> list[Any]:
    entries = [None if value is None else json_text.loads(value) for value in values]
    return [entry if entry is not None and is_permitted(entry, rule) else None for entry in entries]


def _answer_in(chunk: bytes, media_type: str) -> dict[str, Any] | None:
    """The complete answer, if the chunk has it."""
    try:
        if media_type != EVENT_STREAM:
            answer = json_text.loads(chunk)
        else:
            answer = next((event.get("response") for event in _ENDS.find(chunk)), None)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def check_owned(chat: Chat) -> None:
    """Raises InvalidRequest if a Responses or Messages request names what its expert's server stores. All callers share
    the operator's key there, so it may be another caller's. What the caller stored here is already replaced by its
    items."""
    if chat.api == "messages":
        check_thread(chat)
        return
    fields = chat.fields
    if (previous_id := fields.get("previous_response_id")) is not None:
        raise _unknown_response(str(previous_id)[:MAX_ID_CHARACTERS])
    if fields.get("conversation"):
        message = "conversations are not stored here; use previous_response_id, or send the conversation in `input`"
        raise InvalidRequest(message, param="conversation", code="unsupported_api")
    if (item_id := next(iter(references(items_of(fields))), None)) is not None:
        raise _unknown_item(item_id)


def _unknown_response(response_id: str) -> InvalidRequest:
    message = f"no answer {response_id!r} is stored: {REMEDY}"
    return InvalidRequest(message, param="previous_response_id", code="previous_response_not_found")


def _unknown_item(item_id: str) -> InvalidRequest:
    message = f"no item {item_id[:MAX_ID_CHARACTERS]!r} is stored: {REMEDY}"
    return InvalidRequest(message, param="input", code="item_not_found")
