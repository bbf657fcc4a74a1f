"""The stored responses in the request pipeline: the conversation before it, and the storage of its answer.

`StoredStep.continued` runs after a request is parsed: it replaces `previous_response_id` and item references by the
items that are stored, so that any expert can answer. `relayed` stores the answer before its end is sent, so that a
client can refer to it at once.
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
from coe.core import Chat, ExpertRule, Reply, RequestOptions
from coe.errors import BodyTooLarge, InvalidRequest, ResponseNotFound, ResponsesUnavailable
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.experts.translation.expert import is_translated
from coe.outage import Outage
from coe.registry import ExpertSpec, Limits, Registry, StoredResponsesSpec
from coe.routing.eligibility import check_thread
from gateway.access import Caller
from gateway.dialects import responses
from gateway.request.admission import ActiveRequest
from gateway.request.body import INITIAL_COPIES, SMALL_BODY, FairShares, JsonScan
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
    resolved,
    response_name,
)
from gateway.stored_responses.store import ResponseStore, response_store

NotStored = Literal["memory", "size", "store"]
"""Why an answer is not stored: its caller's share of the memory is used up, it is too long, or the store failed."""
MAX_HELD_BYTES = 64 * 2**20
"""Bytes of inputs that a process holds until their answers are stored. One tenant or API key may hold half."""
RECOVERED_SHARE = 0.25
"""Share of this memory; once no more is held, a shortage is over."""
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
        self._shares = FairShares()
        self._shortage = Outage(
            "stored responses", "; it is not stored", counts=lambda: f"{self._shares.held} bytes held"
        )

    @property
    def degraded(self) -> bool:
        """True while answers cannot be stored or read."""
        return self.store.outage.active or self._shortage.active

    async def continued(
        self, chat: Chat, options: RequestOptions, registry: Registry, request: ActiveRequest, *, body_bytes: int
    ) -> tuple[Chat, StoredUse]:
        """Returns the chat with the conversation that it continues, whose memory counts towards `request`. Raises
        InvalidRequest for an unknown id, BodyTooLarge, BodyMemoryFull and ResponsesUnavailable.

        The answers of an API key with a list of experts, and answers to requests for local experts only, have separate
        owners: a request that is not limited in the same way could send them to any expert."""
        rule = options.rule
        owners = _owners(options.tenant, rule, only_local=rule is not None and rule.only_local)
        use, sent = StoredUse(owners[0], caller=options.tenant), items_of(chat.fields)
        fields = dict(chat.fields)
        previous_id, items = fields.get("previous_response_id"), sent
        keeps_state = _keeps_state(chat, registry)
        loading = _Loading(self.store, owners, request, registry.limits, size=body_bytes)
        if previous_id is not None:
            head = await _head(loading, previous_id)
            if head is not None:
                use.previous, use.previous_id = (*head.previous, previous_id), previous_id
                items = [*await _history(loading, head), *sent]
                del fields["previous_response_id"]
            elif not keeps_state:
                raise _unknown_response(previous_id)
        if wanted := references(items):
            items = await _resolved(loading, items, wanted, must=not keeps_state)
        if previous_id is not None or wanted:
            fields["input"], use.stateful = items, True
            chat = await request.parse(partial(responses.read, fields, model=chat.model), size=loading.size)
        if fields.get("store") is not False:
            part = await request.parse(partial(request_part, sent, use.previous), size=body_bytes)
            self._hold(use, part)
        return chat, use

    def _hold(self, use: StoredUse, part: bytes) -> None:
        """Hold the request's part until its answer is stored, unless it is empty or its caller's share is used up."""
        if not part:
            self._count("size")
        elif self._shares.acquire(use.caller, capacity=MAX_HELD_BYTES, count=len(part)):
            use.part, use.stateful = part, True
        else:
            self._count("memory")
            own = f"{self._shares.of(use.caller)} bytes of {use.caller or 'callers without an API key'}"
            self._shortage.began(f"no memory for an input of {len(part)} bytes besides {own}")

    def release(self, use: StoredUse) -> None:
        """Drops the request's part, and frees its bytes."""
        if not use.part:
            return
        self._shares.release(use.caller, count=len(use.part))
        use.part = b""
        if self._shortage.active and self._shares.held <= RECOVERED_SHARE * MAX_HELD_BYTES:
            self._shortage.ended()

    def relayed(self, reply: Reply, use: StoredUse) -> Reply:
        """Returns a reply that stores its answer."""
        return _StoringReply(reply, use, self)

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

    async def keep(self, use: StoredUse, response: dict[str, Any]) -> None:
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
        self, store: ResponseStore, owners: Sequence[str], request: ActiveRequest, limits: Limits, *, size: int
    ) -> None:
        self.size = size
        self._store, self._owners, self._request, self._limits = store, owners, request, limits
        self._scan = JsonScan(max_values=limits.max_json_values)
        self._body_memory = request.memory

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
                await self._request.parse(partial(self._scan.feed, value or b""), size=self.size)
        self._reserve(self._scan.memory)
        return await self._request.parse(partial(_parsed, [stored.get(name) for name in uses]), size=size)

    def _reserve(self, memory: int) -> None:
        if self.size > SMALL_BODY:
            self._request.reserve_memory(self._body_memory + memory)


def _owners(tenant: str | None, rule: ExpertRule | None, *, only_local: bool) -> list[str]:
    """The owners of the answers that a request under this rule may refer to. The first one owns its own answer."""
    owners = [tenant or ""]
    if rule is not None and rule.experts is not None:
        owners.insert(0, f"{owners[0]}{_KEY}{rule.key}")
    return [*(f"{owner}{_ONLY_LOCAL}" for owner in owners), *owners] if only_local else owners


def _parsed(values: list[bytes | None]) -> list[Any]:
    return [None if value is None else json_text.loads(value) for value in values]


async def _head(loading: _Loading, response_id: Any) -> StoredResponse | None:
    """The answer that a request continues."""
    if not is_id(response_id):
        raise InvalidRequest("previous_response_id must be an id", param="previous_response_id")
    (found,) = await loading.load({response_name(response_id): 1})
    return None if found is None else StoredResponse.of(found)


async def _history(loading: _Loading, head: StoredResponse) -> list[Item]:
    """The items before a request that continues `head`."""
    items: list[Item] = []
    found = await loading.load({response_name(one): 1 for one in head.previous})
    for response_id, value in zip(head.previous, found, strict=True):
        if value is None:
            raise _unknown_response(response_id)
        items += StoredResponse.of(value).items
    return [*items, *head.items]


async def _resolved(loading: _Loading, items: list[Item], wanted: Counter[str], *, must: bool) -> list[Item]:
    """The items, with those that are stored in place of the references."""
    if wanted.total() > MAX_REFERENCES:
        message = f"the conversation has more than {MAX_REFERENCES} references to items; send the items in `input`"
        raise InvalidRequest(message, param="input")
    if must and not all(is_id(item.get("id")) for item in items if item.get("type") == REFERENCE):
        raise InvalidRequest("an item_reference in input must have the id of an item", param="input")
    known = {one: count for one, count in wanted.items() if is_id(one)}
    values = await loading.load({item_name(one): count for one, count in known.items()})
    found = {name: value for name, value in zip(known, values, strict=True) if value is not None}
    missing = next((one for one in wanted if one not in found), None)
    if missing is not None and must:
        raise _unknown_item(missing)
    return resolved(items, found)


class _StoringReply:
    """Passes a reply on. Its answer is stored before its last chunk is passed."""

    def __init__(self, reply: Reply, use: StoredUse, step: StoredStep) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply = reply
        self._use = use
        self._step = step
        self._id = b'"previous_response_id":' + orjson.dumps(use.previous_id)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        use = self._use
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                if use.part and (response := self._answer(chunk)) is not None:
                    await self._step.keep(use, response)
                if use.previous_id:
                    chunk = self._echoed(chunk)
                yield chunk

    def _answer(self, chunk: bytes) -> dict[str, Any] | None:
        """The complete answer, if the chunk has it."""
        try:
            if self.media_type != EVENT_STREAM:
                answer = json_text.loads(chunk)
            else:
                answer = next((event.get("response") for event in _ENDS.find(chunk)), None)
        except ValueError:
            return None
        return answer if isinstance(answer, dict) else None

    def _echoed(self, chunk: bytes) -> bytes:
        """Restores the previous id: the expert got the conversation instead, so its answer has none."""
        for without in _NO_ID:
            chunk = chunk.replace(without, self._id)
        return chunk

    async def aclose(self) -> None:
        await self._reply.aclose()


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


def _keeps_state(chat: Chat, registry: Registry) -> bool:
    """True if the client pinned an expert whose own server may know the ids."""
    spec = registry.arm(chat.model) if chat.model in registry.model_names else None
    return isinstance(spec, ExpertSpec) and not is_translated(spec, "responses")
