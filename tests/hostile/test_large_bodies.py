"""Large bodies: refused unread where the key has nothing left, bounded in values and memory, and released early."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from coe.core import Chat
from coe.registry import Registry
from gateway.request.body import SMALL_BODY
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.two_keys import BODY, CHAT, KEYS, ROUTE, bearer, keyed
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

COUNT = "/v1/messages/count_tokens"
MB = 2**20
NEVER = asyncio.Event()
"""Stands for a chunk that never arrives: a gateway that waits for it hangs."""
SSE = (b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n', b"data: [DONE]\n\n")


def headers(key: str, *, length: int | None = None) -> dict[str, str]:
    return bearer(key) | ({} if length is None else {"content-length": str(length)})


def long_chat(size: int, *, character: str = "x", **fields: Any) -> bytes:
    """A request with one message of `size` characters."""
    message = {"role": "user", "content": "code " + character * size}
    return orjson.dumps({"model": "auto", "messages": [message], **fields})


def roomy(**changes: Any) -> Registry:
    """Experts with a context that is long enough for these requests."""
    more = {"context_length": 10**9, "apis": ["chat", "embeddings"]}
    return registry_of(experts=[expert.model_dump() | more for expert in registry_of().experts], **changes)


# ------------------------------------------------------------------------------------------------- limits first


@pytest.mark.parametrize("path", [CHAT, ROUTE, COUNT])
async def test_a_key_over_its_requests_is_refused_before_its_body_is_read(path: str) -> None:
    keys = [key_of(limits={"requests_per_minute": 1}).model_dump(mode="json")]
    body = orjson.dumps({"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "code"}]})
    async with gateway_of(registry_of(access={"keys": keys})) as gateway, asyncio.timeout(60):
        assert (await gateway.post(path, body, headers=bearer("alice"))).status == 200
        refused = await gateway.post(path, NEVER, headers=headers("alice", length=20 * MB))
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 8}, {"dollars_per_day": 0.00008}])
async def test_a_key_over_its_tokens_or_money_is_refused_before_its_body_is_read(limits: dict[str, float]) -> None:
    """An answer uses 8 tokens at 10 dollars a million."""
    prices = {"prices": {"input": 10, "output": 10}}
    experts = [expert.model_dump() | prices for expert in registry_of().experts]
    keys = [key_of(limits=limits).model_dump(mode="json")]
    body = orjson.dumps({"model": "auto", "max_tokens": 1, "messages": [{"role": "user", "content": "code"}]})
    async with gateway_of(registry_of(access={"keys": keys}, experts=experts)) as gateway, asyncio.timeout(60):
        assert (await gateway.post(CHAT, body, headers=bearer("alice"))).status == 200
        refused = await gateway.post(CHAT, NEVER, headers=headers("alice", length=20 * MB))
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("path", [CHAT, ROUTE, COUNT, "/v1/responses", "/v1/completions", "/v1/embeddings"])
async def test_a_body_of_too_many_values_is_refused_before_the_rest_of_it_is_read(path: str) -> None:
    async with gateway_of() as gateway, asyncio.timeout(60):
        for value in (b"{},", b"[[],", b'{"a":1},', b'"",'):
            body = b'{"model":"auto","messages":[' + value * (2 * MB // len(value))
            refused = await gateway.post(path, body, NEVER)
            assert gateway.services.admission.body_memory == 0
            assert refused.status == 400
            if not path.startswith("/v1/messages"):
                assert refused.error["code"] == "too_many_values"
                assert "limits.max_json_values" in refused.error["message"]


async def test_deep_nesting_is_refused_whatever_its_size() -> None:
    async with gateway_of() as gateway:
        for depth in (2000, 20_000, 10 * MB):
            assert (await gateway.post(CHAT, b"[" * depth)).status == 400


def image(size: int) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * (size // 4)}}
    return {"model": "painter", "messages": [{"role": "user", "content": [{"type": "text", "text": "art"}, part]}]}


CODE = 'if (x[0] != "\\"{") { return f(a, b, [c, d], {"k": "\\\\"}); }\n'
LEGITIMATE: dict[str, tuple[str, Any]] = {
    "an image": (CHAT, image(15 * MB)),
    "a file of code": (CHAT, {"model": "auto", "messages": [{"role": "user", "content": CODE * 50_000}]}),
    "tokens to embed": ("/v1/embeddings", {"model": "coder", "input": [list(range(8192))] * 36}),
    "a long conversation": (
        CHAT,
        {"model": "auto", "messages": [{"role": "user", "content": "code, " * 9}, {"role": "assistant"}] * 5000},
    ),
}


@pytest.mark.parametrize("kind", LEGITIMATE)
async def test_large_bodies_of_few_values_are_answered(kind: str) -> None:
    path, fields = LEGITIMATE[kind]
    body = orjson.dumps(fields)
    assert len(body) > SMALL_BODY
    async with gateway_of(roomy()) as gateway:
        response = await gateway.post(path, *(body[at : at + SMALL_BODY] for at in range(0, len(body), SMALL_BODY)))
        (call,) = [call for expert in gateway.experts.values() for call in expert.calls]
    assert response.status == 200
    assert orjson.loads(orjson.dumps(dict(call.fields))) == fields


# ------------------------------------------------------------------------------------------------- memory


@asynccontextmanager
async def half_sent(gateway: Gateway, key: str, count: int, size: int) -> AsyncIterator[list[asyncio.Future[Response]]]:
    """Send the first part of `count` requests with large bodies, and the rest at the end of the block."""
    rest, body = asyncio.Event(), long_chat(size)
    sent = headers(key, length=len(body))
    tasks = [asyncio.ensure_future(gateway.post(CHAT, body[:9], rest, body[9:], headers=sent)) for _ in range(count)]
    admission = gateway.services.admission
    await wait_until(lambda: admission.arriving + sum(task.done() for task in tasks) == count)
    try:
        yield tasks
    finally:
        rest.set()
        await asyncio.gather(*tasks)


async def test_bodies_beyond_the_memory_for_them_are_refused_unread_and_others_find_room() -> None:
    registry = roomy(limits={"body_memory_mb": 24, "max_body_mb": 2}, access=keyed().access.model_dump(mode="json"))
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        gateway = await stack.enter_async_context(gateway_of(registry))
        flood = await stack.enter_async_context(half_sent(gateway, "mallory", 50, MB))
        refused = [task.result() for task in flood if task.done()]
        assert len(refused) == 44  # the other 6 hold 2 MiB each, half of 24
        assert {one.status for one in refused} == {503}
        assert {one.error["code"] for one in refused} == {"body_memory_full"}
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert "limits.body_memory_mb" in refused[0].error["message"]
        large = long_chat(MB)
        assert (await gateway.post(CHAT, large, headers=headers("alice", length=len(large)))).status == 200
        for key in ("alice", "mallory"):
            assert (await gateway.post(CHAT, BODY, headers=bearer(key))).status == 200
    assert gateway.services.admission.body_memory == 0


@pytest.mark.parametrize(("character", "copies"), [("x", 2), ("中", 6)])
async def test_text_beyond_ascii_holds_the_memory_that_it_takes(character: str, copies: int) -> None:
    held = asyncio.Event()
    body = long_chat(MB, character=character)
    async with gateway_of(roomy(), coder=held) as gateway, asyncio.timeout(60):
        asked = asyncio.ensure_future(gateway.post(CHAT, body))
        await wait_until(lambda: gateway.experts["coder"].calls)
        assert gateway.services.admission.body_memory == pytest.approx(copies * len(body), rel=0.01)
        held.set()
        await asked
        assert gateway.services.admission.body_memory == 0


async def test_a_large_body_is_gone_once_its_answer_has_begun() -> None:
    wait = asyncio.Event()
    async with gateway_of(roomy(), coder=(SSE[0], wait, SSE[1])) as gateway, asyncio.timeout(60):
        asked = asyncio.ensure_future(gateway.post(CHAT, long_chat(MB, stream=True)))
        await gateway.first_chunk.wait()
        gateway.experts["coder"].calls.clear()
        assert gateway.services.admission.body_memory == 0
        gc.collect()
        texts = [message.text for chat in found(Chat) for message in chat.messages]
        assert all(len(text) < MB for text in texts)
        wait.set()
        assert (await asked).status == 200
    (record,) = gateway.records
    assert (record.outcome, record.stream, record.category) == ("ok", True, "code")


# ------------------------------------------------------------------------------------------------- turns


async def test_a_flood_of_one_key_delays_the_large_body_of_another_by_a_few_bodies_only() -> None:
    """A body takes two turns, one to scan its last bytes and one to parse it."""
    ends = list[str]()

    async def post(key: str) -> None:
        assert (await gateway.post(ROUTE, long_chat(2 * SMALL_BODY), headers=bearer(key))).status == 200
        ends.append(key)

    async with gateway_of(roomy(access={"keys": KEYS})) as gateway, asyncio.timeout(60):
        await asyncio.gather(*map(post, ["mallory"] * 50 + ["alice"]))
    assert "alice" in ends[:4]


def found(kind: type) -> list[Any]:
    """Objects of this type that are alive; `isinstance` would run properties of other libraries' objects."""
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]
