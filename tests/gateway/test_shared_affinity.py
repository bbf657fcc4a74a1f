"""Gateways share the experts of conversations through a real Redis."""

import asyncio

import pytest
from redis import Redis

from coe.errors import ConfigError
from coe.routing.conversation import SHARED_SECONDS, Affinity, Conversation
from gateway.access import access, open_affinity
from tests.records.redis_server import MISSING, installed

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not installed(), reason=MISSING)]
ANSWER = Conversation((b"k",), (), b"p")
FOLLOW_UP = Conversation((b"l",), (b"k",), b"p")


async def heard(affinity: Affinity, conversation: Conversation, expert: str) -> None:
    """Wait until the gateway knows this expert."""
    async with asyncio.timeout(60):
        while await affinity.find(conversation) != expert:
            await asyncio.sleep(0.01)


async def test_what_one_gateway_answered_another_knows_for_an_hour(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "AFFINITY_LOOKUP_SECONDS", 5.0)  # however busy the machine is
    async with open_affinity(redis_url) as one, open_affinity(redis_url) as other:
        assert await other.find(FOLLOW_UP) is None
        one.put(ANSWER, "painter")
        one.put(ANSWER, "coder")
        await heard(other, FOLLOW_UP, "coder")
        assert await asyncio.gather(*(other.find(FOLLOW_UP) for _ in range(50))) == ["coder"] * 50
        with Redis.from_url(redis_url) as client:
            assert 0 < client.ttl("coe:{with}:1:" + b"k".hex()) <= SHARED_SECONDS
        one.put(FOLLOW_UP, "painter")
    async with open_affinity(redis_url) as later:
        await heard(later, Conversation((b"m",), (b"l", b"k"), b"p"), "painter")


async def test_each_gateway_remembers_alone_without_a_redis_and_a_wrong_address_is_refused() -> None:
    async with open_affinity("file") as one, open_affinity("redis://127.0.0.1:1/0") as other:
        for affinity in (one, other):
            affinity.put(ANSWER, "coder")
            assert await affinity.find(FOLLOW_UP) == "coder"
            assert await affinity.find(Conversation((b"x",), (b"y",), b"p")) is None
    with pytest.raises(ConfigError, match="not a Redis address"):
        async with open_affinity("redis://h:port/0"):
            pass
