"""One connection to a real Redis, which closes it, refuses commands and stops answering."""

import asyncio
import signal

import pytest
from redis import Redis

from coe.redis import RedisClient
from tests.records.redis_server import MISSING, RedisServer, installed

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not installed(), reason=MISSING)]


class Unavailable(Exception):
    """Redis failed."""


def client_of(server: RedisServer) -> RedisClient:
    return RedisClient(
        server.url, key="counters", error=Unavailable, connections=2, connect_timeout=None, timeout=None, retries=0
    )


async def test_commands_that_go_together_are_answered_in_turn(redis_server: RedisServer) -> None:
    client = client_of(redis_server)
    connection, value = client.connection(), bytes(range(256)) * 400
    assert await connection.exchange([b"SET", b"\x00k", value], [b"MGET", b"\x00k", b"other"]) == [b"OK", [value, None]]
    assert await connection.exchange([b"PING"]) == [b"PONG"]
    await client.aclose()


async def test_a_connection_that_the_server_closed_is_replaced(redis_server: RedisServer) -> None:
    client = client_of(redis_server)
    connection = client.connection()
    await connection.exchange([b"PING"])
    with Redis.from_url(redis_server.url) as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
    assert await connection.exchange([b"PING"]) == [b"PONG"]
    await client.aclose()


async def test_after_an_error_reply_no_reply_is_taken_for_another(redis_server: RedisServer) -> None:
    client = client_of(redis_server)
    connection = client.connection()
    with pytest.raises(Unavailable, match=r"unknown command.*counters needs Redis 6\.2 or newer"):
        await connection.exchange([b"NO-SUCH"], [b"ECHO", b"first"])
    assert await connection.exchange([b"ECHO", b"second"]) == [b"second"]
    await client.aclose()


async def test_a_cancelled_exchange_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    client = client_of(redis_server)
    connection = client.connection()
    await connection.exchange([b"PING"])
    redis_server.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connection.exchange([b"ECHO", b"first"])
    redis_server.signal(signal.SIGCONT)
    assert await connection.exchange([b"ECHO", b"second"]) == [b"second"]
    await client.aclose()


async def test_without_a_server_the_error_names_it(redis_server: RedisServer) -> None:
    client = client_of(redis_server)
    connection = client.connection()
    await connection.exchange([b"PING"])
    redis_server.kill()
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"redis at 127.0.0.1:{redis_server.port}"):
            await connection.exchange([b"PING"])
    redis_server.start()
    assert await connection.exchange([b"PING"]) == [b"PONG"]
    await client.aclose()
