"""Gateways share the experts of conversations through a real Redis, which stops and starts."""

import asyncio
import signal

import pytest
from redis import Redis

from coe.errors import ConfigError
from gateway.access.redis_affinity import EXPIRY_SECONDS, RedisAffinity, open_affinity
from tests.records.redis_server import MISSING, RedisServer, installed

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not installed(), reason=MISSING)]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long timeout, so that a running Redis accepts each write on a busy machine."""
    monkeypatch.setattr("gateway.access.redis_affinity.EXCHANGE_TIMEOUT_SECONDS", 10.0)


async def heard(conversations: RedisAffinity, key: bytes) -> str:
    """Wait until a conversation is known, and return its expert."""
    async with asyncio.timeout(60):
        while (expert := await conversations.lookup([key])) is None:
            await asyncio.sleep(0.01)
    return expert


async def test_what_one_gateway_answered_another_knows_for_an_hour(redis_server: RedisServer) -> None:
    async with RedisAffinity(redis_server.url) as one, RedisAffinity(redis_server.url) as other:
        assert await other.lookup([b"k"]) is None
        one.publish([b"k"], "painter")
        one.publish([b"k"], "coder")
        assert await heard(other, b"k") == "coder"
        asked = await asyncio.gather(*(heard(other, b"k") for _ in range(50)))
        assert asked == ["coder"] * 50
        with Redis.from_url(redis_server.url) as client:
            assert 0 < client.ttl("coe:with:" + b"k".hex()) <= EXPIRY_SECONDS


async def test_one_that_stops_tells_what_it_knows(redis_server: RedisServer) -> None:
    async with RedisAffinity(redis_server.url) as one:
        one.publish([b"k"], "coder")
    async with RedisAffinity(redis_server.url) as other:
        assert await heard(other, b"k") == "coder"


async def test_a_redis_that_is_away_knows_nothing_and_is_found_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.access.redis_affinity.RETRY_SECONDS", 0.05)
    async with RedisAffinity(redis_server.url) as one:
        one.publish([b"k"], "coder")
        assert await heard(one, b"k") == "coder"
        monkeypatch.setattr("gateway.access.redis_affinity.EXCHANGE_TIMEOUT_SECONDS", 0.2)
        redis_server.signal(signal.SIGSTOP)
        assert await one.lookup([b"k"]) is None
        async with asyncio.timeout(60):
            while not caplog.records:
                await asyncio.sleep(0.01)
        redis_server.signal(signal.SIGCONT)
        assert await heard(one, b"k") == "coder"
        redis_server.kill()
        assert await one.lookup([b"k"]) is None
        redis_server.start()
        one.publish([b"l"], "painter")
        async with asyncio.timeout(60):
            while await one.lookup([b"l"]) is None:
                one.publish([b"l"], "painter")  # what was reported meanwhile may be lost
                await asyncio.sleep(0.01)
    place = f"conversations: redis at 127.0.0.1:{redis_server.port}"
    hung, back, *_ = [record.getMessage() for record in caplog.records]
    assert hung.startswith(f"{place}: no reply in time; check that it runs")
    assert back == f"{place} is back"


async def test_each_gateway_remembers_alone_without_a_redis_and_a_wrong_address_is_refused() -> None:
    async with open_affinity("memory"):
        pass
    with pytest.raises(ConfigError, match="not a Redis address"):
        async with open_affinity("redis://h:port/0"):
            pass
