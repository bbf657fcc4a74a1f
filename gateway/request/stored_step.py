"""The stored responses in the request path: the conversation before a request, and the storage of its answer.

`StoredStep.load_history` runs after a request is parsed: it replaces `previous_response_id` and item references by the
items that are stored, so that any expert can answer. `keep` holds the answer before its end is sent, so that a client
can refer to it at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson

from coe import json_text
from coe.core import Chat, Chunks, ExpertRule
from coe.errors import BodyTooLarge, InvalidRequest, ResponseNotFound, ResponsesUnavailable
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.registry import Limits, StoredResponsesSpec
from coe.routing.eligibility import check_thread
from gateway.access import Caller
from gateway.dialects import responses
from gateway.request.admission import ActiveRequest
from gateway.request.body import INITIAL_COPIES, SMALL_BODY, JsonScan
from gateway.request.trace import Trace
from gateway.stored_responses.conversation import (
    MAX_ID_CHARACTERS,
    REFERENCE,
    Item,
    StoredResponse,
    StoredUse,
    entries_of,
    is_id,
    is_storable,
    item_name,
    items_of,
    references,
    request_part,
    response_name,
)
from gateway.stored_responses.store import ResponseStore, response_store

NotStored = Literal["size", "store"]
"""Why an answer is not stored: it is too long, or the store failed."""
MAX_REFERENCES = 2_000
"""References to items in one conversation."""
REMEDY = (
    "it was never stored (`store: false`), has expired, was deleted, belongs to another API key, or is of a request "
    "with x-coe-only-local, which only such a request may continue; send the conversation in `input`"
)
_KEY, _ONLY_LOCAL = " key ", " only-local"
"""Parts of owners: before the name of an API key with a list of experts, and at the end for answers to requests for
local experts only. Names of tenants and keys have no space."""
_ENDS = sse.EventTypes("response.completed", "response.incomplete")
_NO_ID = (b'"previous_response_id":null', b'"previous_response_id": null')


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
        yield StoredStep(store, count=count)
    finally:
        await store.aclose()


class StoredStep:
    """The stored responses of a process."""

    def __init__(self, store: ResponseStore, *, count: Callable[[NotStored], None]) -> None:
        self.store = store
        self._count = count

    @property
    def degraded(self) -> bool:
        """True while answers cannot be stored or read."""
        return self.store.outage.active

    async def load_history(self, trace: Trace, active: ActiveRequest, *, body_bytes: int) -> None:
        """Replaces the chat of the trace by one with the conversation that it continues, whose memory counts towards
        `active`. Raises InvalidRequest for an unknown id, BodyTooLarge, BodyMemoryFull and ResponsesUnavailable.

        The answers of an API key with a list of experts, and answers to requests for local experts only, have separate
        owners: a request that is not limited in the same way could send them to any expert."""
        chat, rule, registry = trace.chat, trace.options.rule, trace.snapshot.registry
        owners = _owners(trace.caller.tenant, rule, only_local=rule is not None and rule.only_local)
        trace.stored = use = StoredUse(owners[0])
        sent, fields = items_of(chat.fields), dict(chat.fields)
        previous_id, items = fields.get("previous_response_id"), sent
        loading = _Loading(self.store, owners, active, registry.limits, size=body_bytes)
        if previous_id is not None:
            head = await _head(loading, previous_id)
            use.previous, use.previous_id = (*head.previous, previous_id), previous_id
            items = [*await _history(loading, head), *sent]
            del fields["previous_response_id"]
        if wanted := references(items):
            items = await _resolved(loading, items, wanted)
        if previous_id is not None or wanted:
            fields["input"], fields["model"], use.stateful = items, chat.model, True
            trace.chat = await active.process(partial(responses.read, fields), size=loading.size)
        if fields.get("store") is not False:
            use.part = await active.process(partial(request_part, sent, use.previous), size=body_bytes)
            use.stateful = use.stateful or bool(use.part)
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

    async def response(self, caller: Caller, response_id: str) -> StoredResponse:
        """Returns a stored answer. Raises ResponseNotFound and ResponsesUnavailable."""
        return (await self._find(caller, response_id))[1]

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Deletes an answer and its items. Raises ResponseNotFound and ResponsesUnavailable."""
        owner, found = await self._find(caller, response_id)
        items = [item_name(item["id"]) for item in found.response["output"] if is_id(item.get("id"))]
        await self.store.delete(owner, [response_name(response_id), *items])

    async def _find(self, caller: Caller, response_id: str) -> tuple[str, StoredResponse]:
        """Returns a stored answer with its owner. Raises ResponseNotFound and ResponsesUnavailable."""
        for owner in _owners(caller.tenant, caller.rule, only_local=True):
            (found,) = await self.store.get(owner, [response_name(response_id)])
            if found is not None:
                return owner, StoredResponse.of(json_text.loads(found))
        raise not_found(response_id)

    async def _store(self, use: StoredUse, response: dict[str, Any]) -> None:
        """Stores an answer. If that is impossible, a gauge, the log and a count say so."""
        if not is_storable(response):
            return
        if use.previous_id:
            response["previous_response_id"] = use.previous_id
        entries = entries_of(response, use.part)
        if not entries:
            self._count("size")
            return
        try:
            await self.store.put(use.owner, entries)
        except ResponsesUnavailable:
            self._count("store")


class _Loading:
    """Loads the stored values of one conversation under the limits of a request body.

    `size` is the bytes of the conversation so far. Sizes are compared with the limit before a value is fetched, so that
    neither long histories nor repeated references take memory before they are refused.
    """

    def __init__(
        self, store: ResponseStore, owners: Sequence[str], active: ActiveRequest, limits: Limits, *, size: int
    ) -> None:
        self.size = size
        self._store, self._owners, self._active, self._limits = store, owners, active, limits
        self._scan = JsonScan(max_values=limits.max_json_values)
        self._body_memory = active.memory

    async def load(self, uses: Mapping[str, int]) -> list[Any]:
        """Returns the parsed values, None for those that are not stored. `uses` is how often the conversation has each
        name. Raises BodyTooLarge, BodyMemoryFull, InvalidRequest for too many JSON values, and ResponsesUnavailable."""
        if not uses:
            return []
        found: dict[str, tuple[str, int]] = {}  # the owner and size of each value that is stored
        for owner in self._owners:
            missing = [name for name in uses if name not in found]
            sizes = await self._store.sizes(owner, missing) if missing else []
            found |= {name: (owner, size) for name, size in zip(missing, sizes, strict=True) if size}
        size = sum(size * uses[name] for name, (_, size) in found.items())
        self.size += size
        limit = self._limits.max_body_mb
        if self.size > limit * 2**20:
            raise BodyTooLarge(f"the conversation has more than {limit:g} MiB; send what is still needed in `input`")
        self._reserve(self._scan.memory + INITIAL_COPIES * size)
        stored: dict[str, bytes | None] = {}
        for owner in self._owners:
            names = [name for name, (its_owner, _) in found.items() if its_owner == owner]
            values = await self._store.get(owner, names) if names else []
            stored |= zip(names, values, strict=True)
        for name, value in stored.items():
            for _ in range(uses[name]):
                await self._active.process(partial(self._scan.feed, value or b""), size=self.size)
        self._reserve(self._scan.memory)
        return await self._active.process(partial(_parsed, [stored.get(name) for name in uses]), size=size)

    def _reserve(self, memory: int) -> None:
        if self.size > SMALL_BODY:
            self._active.reserve_memory(self._body_memory + memory)


def _owners(tenant: str | None, rule: ExpertRule | None, *, only_local: bool) -> list[str]:
    """The owners of the answers that a request under this rule may refer to. The first one owns its own answer."""
    owners = [tenant or ""]
    if rule is not None and rule.experts is not None:
        owners.insert(0, f"{owners[0]}{_KEY}{rule.key}")
    return [*(f"{owner}{_ONLY_LOCAL}" for owner in owners), *owners] if only_local else owners


def _parsed(values: list[bytes | None]) -> list[Any]:
    return [None if value is None else json_text.loads(value) for value in values]


async def _head(loading: _Loading, response_id: Any) -> StoredResponse:
    """The answer that a request continues."""
    if not is_id(response_id):
        raise InvalidRequest("previous_response_id must be an id", param="previous_response_id")
    (found,) = await loading.load({response_name(response_id): 1})
    if found is None:
        raise _unknown_response(response_id)
    return StoredResponse.of(found)


async def _history(loading: _Loading, head: StoredResponse) -> list[Item]:
    """The items before a request that continues `head`."""
    items: list[Item] = []
    found = await loading.load({response_name(one): 1 for one in head.previous})
    for response_id, value in zip(head.previous, found, strict=True):
        if value is None:
            raise _unknown_response(response_id)
        items += StoredResponse.of(value).items
    return [*items, *head.items]


async def _resolved(loading: _Loading, items: list[Item], wanted: Counter[str]) -> list[Item]:
    """The items, with those that are stored in place of the references."""
    if wanted.total() > MAX_REFERENCES:
        message = f"the conversation has more than {MAX_REFERENCES} references to items; send the items in `input`"
        raise InvalidRequest(message, param="input")
    if not all(is_id(item.get("id")) for item in items if item.get("type") == REFERENCE):
        raise InvalidRequest("an item_reference in input must have the id of an item", param="input")
    values = await loading.load({item_name(one): count for one, count in wanted.items()})
    stored = dict(zip(wanted, values, strict=True))
    if (missing := next((one for one, value in stored.items() if value is None), None)) is not None:
        raise _unknown_item(missing)
    return [stored[str(item["id"])] if item.get("type") == REFERENCE else item for item in items]


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


def not_found(response_id: str) -> ResponseNotFound:
    """Returns the error for an unknown answer."""
    return ResponseNotFound(f"no answer {response_id!r} is stored: {REMEDY}", param="id")


def _unknown_response(response_id: str) -> InvalidRequest:
    message = f"no answer {response_id!r} is stored: {REMEDY}"
    return InvalidRequest(message, param="previous_response_id", code="previous_response_not_found")


def _unknown_item(item_id: str) -> InvalidRequest:
    message = f"no item {item_id[:MAX_ID_CHARACTERS]!r} is stored: {REMEDY}"
    return InvalidRequest(message, param="input", code="item_not_found")
