"""Rights and limits of API keys: the real app with declared keys."""

import asyncio
from typing import Any

import orjson
import pytest

from coe.registry import Registry
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

BODY = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
SSE = (b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n")


def keyed(*, scopes: tuple[str, ...] = ("chat", "route", "feedback"), limits: dict[str, Any] | None = None) -> Registry:
    """One key, `alice`, whose secret is its name."""
    key = key_of(limits=limits, scopes=scopes, tenant="acme")
    price = {"input": 10.0, "output": 10.0}
    experts = [expert.model_dump() | {"prices": price} for expert in registry_of().experts]
    return registry_of(access={"keys": [key.model_dump()]}, experts=experts)


def bearer(key: str = "alice") -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


async def send_chat(gateway: Gateway, *, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "code"}], **fields}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=headers or bearer())


# ------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer alice"},
        {"authorization": "bearer  alice "},
        {"x-api-key": "alice"},
        {"api-key": "alice"},
    ],
)
async def test_a_known_key_comes_in_as_openai_and_as_anthropic_send_it(headers: dict[str, str]) -> None:
    async with gateway_of(keyed()) as gateway:
        assert (await send_chat(gateway, headers=headers | {"content-type": "application/json"})).status == 200
        (record,) = gateway.records
    assert (record.key, record.tenant) == ("alice", "acme")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json"},
        {"authorization": "Bearer mallory"},
        {"authorization": "Bearer "},
        {"authorization": "Basic alice"},
        {"x-api-key": ""},
        {"authorization": "Bearer " + "a" * 5000},
        {"authorization": "Bearer \xff\xfe"},
    ],
)
async def test_no_key_or_an_unknown_one_is_401_and_not_echoed(headers: dict[str, str]) -> None:
    async with gateway_of(keyed()) as gateway:
        response = await send_chat(gateway, headers=headers)
        assert not gateway.experts["coder"].calls
        (record,) = gateway.records
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.error["type"] == "authentication_error"
    assert response.error["code"] == record.outcome == "invalid_api_key"
    assert "mallory" not in response.body.decode()


async def test_a_known_key_without_the_scope_is_403_and_told_which() -> None:
    async with gateway_of(keyed(scopes=("route",))) as gateway:
        response = await send_chat(gateway)
        routed = await gateway.post("/v1/route", BODY, headers=bearer())
    assert response.status == 403
    assert response.error["message"] == "the API key 'alice' lacks the scope 'chat'; it has route"
    assert routed.status == 200


async def test_without_declared_keys_everybody_may_do_everything() -> None:
    async with gateway_of() as gateway:
        assert (await gateway.chat("code")).status == 200
        assert (await gateway.post("/metrics", method="GET")).status == 200
        (record,) = gateway.records
    assert (record.key, record.tenant) == (None, None)


# ------------------------------------------------------------------------------------------------- limits


async def test_answers_and_refusals_tell_what_is_left_as_openai_does() -> None:
    async with gateway_of(keyed(limits={"requests_per_minute": 2, "tokens_per_minute": 600})) as gateway:
        first = await send_chat(gateway, max_tokens=100)
        await send_chat(gateway, max_tokens=100)
        refused = await send_chat(gateway)
        assert gateway.records[-1].outcome == "rate_limit_exceeded"
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "20s"
    assert first.headers["x-ratelimit-limit-tokens"] == "600"
    assert first.headers["x-ratelimit-remaining-tokens"] == "499"
    assert first.headers["x-ratelimit-reset-tokens"] == "20s"
    assert refused.status == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["retry-after"] == "20"
    assert refused.error["type"] == "rate_limit_error"
    assert "requests_per_minute of the API key 'alice'" in refused.error["message"]


async def test_a_stream_is_counted_by_what_it_used() -> None:
    async with gateway_of(keyed(limits={"tokens_per_minute": 1000}), coder=SSE) as gateway:
        await send_chat(gateway, stream=True, max_tokens=900)
        second = await send_chat(gateway, stream=True, max_tokens=900)
    assert second.status == 200
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 1000 - 8 - 901  # 8 used by the first, 901 reserved


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [
        ({}, 512),
        ({"max_completion_tokens": 100}, 100),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_output_tokens": 50}, 512),  # of another API: servers may ignore it
        ({"max_tokens": 100.0, "n": 2}, 200),
        ({"max_completion_tokens": 1, "max_tokens": 100}, 100),
        ({"max_tokens": 100, "best_of": 3}, 300),
        ({"max_tokens": None, "n": None}, 512),
        ({"max_tokens": 0}, 0),
    ],
)
async def test_tokens_are_reserved_by_the_requested_length(fields: dict[str, Any], reserved: int) -> None:
    async with gateway_of(keyed(limits={"tokens_per_minute": 1000})) as gateway:
        response = await send_chat(gateway, **fields)
    assert int(response.headers["x-ratelimit-remaining-tokens"]) == 999 - reserved


async def test_a_concurrency_slot_is_used_to_the_last_byte_and_then_free() -> None:
    wait = asyncio.Event()
    async with gateway_of(keyed(limits={"concurrent_requests": 2}), coder=(SSE[0], wait, SSE[1])) as gateway:
        running = [asyncio.create_task(send_chat(gateway, stream=True)) for _ in range(2)]
        while len(gateway.experts["coder"].replies) < 2:
            await asyncio.sleep(0)
        assert (await send_chat(gateway, stream=True)).status == 429
        wait.set()
        await asyncio.gather(*running)
        assert (await send_chat(gateway, stream=True)).status == 200


async def test_money_stops_when_it_is_spent() -> None:
    """Each answer uses 8 tokens at 10 dollars a million."""
    async with gateway_of(keyed(limits={"dollars_per_day": 0.001})) as gateway:
        statuses = [(await send_chat(gateway, max_tokens=1)).status for _ in range(14)]
        message = (await send_chat(gateway, max_tokens=1)).error["message"]
        spent = sum(record.cost or 0 for record in gateway.records)
    assert statuses == [200] * 13 + [429]
    assert "dollars_per_day of the API key 'alice' ($0.001) is used up" in message
    assert 0.00098 <= spent <= 0.001 + 0.00008


async def test_money_is_reserved_by_the_dearest_expert_or_the_one_pinned() -> None:
    dear = [
        expert.model_dump() | {"prices": {"input": 0, "output": 1000.0 if expert.name == "painter" else 1.0}}
        for expert in registry_of().experts
    ]
    key = key_of(limits={"dollars_per_day": 0.5}).model_dump()
    async with gateway_of(registry_of(access={"keys": [key]}, experts=dear)) as gateway:
        assert (await send_chat(gateway, max_tokens=1000)).status == 400
        assert (await send_chat(gateway, max_tokens=1000, model="coder")).status == 200
