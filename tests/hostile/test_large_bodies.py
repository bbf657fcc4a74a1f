"""Large bodies: refused unread where the key has nothing left, bounded in values and memory, and released early."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from coe.core import Call, Chat
from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.registry import Registry
from gateway.request.body import DEFAULT_MAX_VALUES, PAUSE, SHORT_WORK, SMALL_BODY, LargeBodies
from tests.access.samples import key_of
from tests.experts.faulty_server import FaultyServer
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


async def test_a_key_that_has_all_its_requests_at_work_is_refused_before_another_body_is_read() -> None:
    keys = [key_of(limits={"concurrent_requests": 1}).model_dump(mode="json")]
    async with gateway_of(registry_of(access={"keys": keys})) as gateway, asyncio.timeout(60):
        rest = asyncio.Event()
        first = asyncio.ensure_future(gateway.post(CHAT, BODY[:9], rest, BODY[9:], headers=bearer("alice")))
        await wait_until(lambda: gateway.services.admission.arriving)
        assert (await gateway.post(CHAT, NEVER, headers=bearer("alice"))).status == 429
        rest.set()
        assert (await first).status == 200
        assert (await gateway.post(CHAT, BODY, headers=bearer("alice"))).status == 200


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("path", [CHAT, ROUTE, COUNT, "/v1/responses", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("value", [b"{},", b"[[],", b'{"a":1},', b'"",'])
async def test_a_body_of_too_many_values_is_refused_before_the_rest_of_it_is_read(path: str, value: bytes) -> None:
    body = b'{"model":"auto","messages":[' + value * (2 * MB // len(value))
    async with gateway_of() as gateway, asyncio.timeout(60):
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


async def test_the_declared_number_of_values_counts() -> None:
    body = orjson.dumps({"model": "coder", "input": [list(range(1000))] * 100})
    async with gateway_of(roomy(limits={"max_json_values": 90_000})) as gateway:
        assert (await gateway.post("/v1/embeddings", body)).status == 400
    async with gateway_of(roomy(limits={"max_json_values": 110_000})) as gateway:
        assert (await gateway.post("/v1/embeddings", body)).status == 200


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


async def test_a_body_of_undeclared_length_holds_memory_as_it_comes() -> None:
    body = long_chat(MB)
    async with gateway_of(roomy()) as gateway, asyncio.timeout(60):
        rest = asyncio.Event()
        sent = asyncio.ensure_future(gateway.post(CHAT, body[: MB // 2], rest, body[MB // 2 :]))
        await wait_until(lambda: gateway.services.admission.body_memory)
        assert MB <= gateway.services.admission.body_memory < 1.1 * MB
        rest.set()
        assert (await sent).status == 200


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


def found(kind: type) -> list[Any]:
    """Objects of this type that are alive; `isinstance` would run properties of other libraries' objects."""
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]


@pytest.mark.parametrize("fault", ["status:500", "status:400", "torn", "half", "text:noise", "unreachable"])
async def test_a_failed_request_leaves_nothing_to_the_garbage_collector(fault: str) -> None:
    upstream = FaultyServer()
    runner = await upstream.start()
    url = "http://127.0.0.1:9/v1" if fault == "unreachable" else upstream.url
    local = {"model": fault, "runtime": "external", "base_url": url}
    registry = registry_of(experts=[{"name": name, **local} for name in ("coder", "painter", "generalist")])
    async with (
        Client() as session,
        gateway_of(registry, real_experts=build_experts(registry, {}, session=session)) as gateway,
    ):
        gc.collect()
        before = {id(one) for one in (*found(Chat), *found(Call))}
        gc.disable()
        try:
            assert (await gateway.post(CHAT, BODY)).status >= 400
            assert not [one for one in (*found(Chat), *found(Call)) if id(one) not in before]
        finally:
            gc.enable()
    await runner.cleanup()


async def test_a_small_body_is_neither_scanned_nor_counted() -> None:
    body = b'{"model":"auto","messages":[' + b"{}," * 20_000 + b"{}]}"
    assert len(body) <= SMALL_BODY < DEFAULT_MAX_VALUES
    async with gateway_of() as gateway:
        refused = await gateway.post(CHAT, body)
    assert refused.error["param"] == "messages[0].role"


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


@pytest.mark.parametrize(("cost", "count"), [(0.0, 100), (SHORT_WORK / 2, 100), (3600.0, 1)])
async def test_long_work_on_a_large_body_is_followed_by_a_pause_and_short_work_is_not(
    cost: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies, done = LargeBodies(), list[None]()
    monkeypatch.setattr("gateway.request.body.time.perf_counter", lambda: cost * len(done))
    tasks = [asyncio.create_task(bodies.process("a", partial(done.append, None))) for _ in range(100)]
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert len(done) == count
    for task in tasks:
        task.cancel()


async def test_the_pause_is_in_proportion_to_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, bodies = 0.0, LargeBodies()
    monkeypatch.setattr("gateway.request.body.time.perf_counter", lambda: clock)

    def work(cost: float) -> None:
        nonlocal clock
        clock += cost

    for cost in (2 * SHORT_WORK, 10 * SHORT_WORK):
        first, second = (asyncio.create_task(bodies.process("a", partial(work, cost))) for _ in range(2))
        await first
        clock += 0.9 * PAUSE * cost
        await asyncio.sleep(2 * PAUSE * cost)
        assert not second.done()
        clock += 0.2 * PAUSE * cost
        await second
        clock += 2 * PAUSE * cost


async def test_turns_go_round_the_keys_one_in_an_iteration_whatever_requests_end_while_they_wait() -> None:
    rng, bodies, done = random.Random(0), LargeBodies(), list[str]()
    keys = [rng.choice("aaaabbc") for _ in range(300)]
    tasks = [asyncio.create_task(bodies.process(key, partial(done.append, key))) for key in keys]
    ended = [task for task, key in zip(tasks, keys, strict=True) if key == "a"]
    while not all(task.done() for task in tasks):
        before = len(done)
        await asyncio.sleep(0)
        assert len(done) <= before + 1
        ended = [task for task in ended if not task.done()]
        if ended and rng.random() < 0.1:
            rng.choice(ended[:2]).cancel()  # its turn comes next, or has just come
    cancelled = sum(map(asyncio.Task.cancelled, tasks))
    assert cancelled > 10
    assert Counter(done) == Counter(keys) - Counter(a=cancelled)
    for key in "bc":
        between = "".join(done).strip("abc".replace(key, "")).split(key)
        assert all(len(turns) == len(set(turns)) for turns in between)
    assert await bodies.process("a", lambda: "free") == "free"
