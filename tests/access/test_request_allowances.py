"""Charges to a key for requests that call no expert."""

import asyncio
from typing import Any

import orjson
import pytest

from tests.access.test_access import bearer, keyed, send_chat
from tests.fakes import Gateway, Response, gateway_of

pytestmark = pytest.mark.anyio


async def route(gateway: Gateway, text: str = "code") -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    return await gateway.post("/v1/route", orjson.dumps(body), headers=bearer())


async def test_a_request_that_asks_no_expert_counts_as_one_without_tokens_or_money() -> None:
    limits = {"requests_per_minute": 4, "tokens_per_minute": 1000, "dollars_per_day": 1}
    async with gateway_of(keyed(limits=limits)) as gateway:
        wrong = await gateway.post("/v1/route", b"{}", headers=bearer())
        first = await route(gateway)
        answered = await send_chat(gateway, max_tokens=900)
        assert (await route(gateway)).status == 200
        refused = await route(gateway)
        assert (await send_chat(gateway)).status == 429
    assert wrong.headers["x-ratelimit-remaining-requests"] == "3"  # its body was read
    assert (wrong.status, first.status, answered.status) == (400, 200, 200)
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.error["type"] == "rate_limit_error"
    assert "requests_per_minute of the API key 'alice'" in refused.error["message"]


async def test_a_dry_run_uses_a_concurrency_slot_while_it_is_processed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, go_on = asyncio.Event(), asyncio.Event()
    async with gateway_of(keyed(limits={"concurrent_requests": 1})) as gateway:
        classifier = gateway.services.snapshot.composition.classifier
        classify = classifier.classify

        async def slow(*asked: Any) -> Any:
            looking.set()
            await go_on.wait()
            return await classify(*asked)

        monkeypatch.setattr(classifier, "classify", slow)
        first = asyncio.create_task(route(gateway))
        await looking.wait()
        assert (await route(gateway)).status == 429
        assert (await send_chat(gateway)).status == 429
        go_on.set()
        assert (await first).status == 200
        assert (await route(gateway)).status == 200
