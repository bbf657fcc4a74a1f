"""Several gateways over one Redis: together they allow no more than one alone, also when Redis or a gateway fails."""

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis

from gateway.access import leases, redis, shared_account
from gateway.access.limits import Account, Amounts
from gateway.access.redis import RedisLimiter
from tests import forked
from tests.access.samples import ONE, account_of, dollars, key_of, refilling, tokens
from tests.access.test_limiters import admitted
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
Gateways = Callable[[], Awaitable[RedisLimiter]]


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it holds; fails when it does not within some seconds."""
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_gateways_together_allow_what_one_would(gateways: Gateways) -> None:
    accounts = [account_of(await gateways(), requests_per_minute=100) for _ in range(4)]
    began = time.monotonic()
    counts = await asyncio.gather(*(admitted(account, 60) for account in accounts))
    assert 100 <= sum(map(len, counts)) <= 101 + (time.monotonic() - began) * 100 / 60


CONTESTED = [  # limits, how many requests they allow, how many more each second
    ({"requests_per_minute": 300}, 300, 5),
    ({"tokens_per_minute": 3000}, 300, 5),
    ({"dollars_per_day": 0.3}, 300, 0),
    ({"requests_per_minute": 60_000, "tokens_per_minute": 600_000, "dollars_per_month": 0.4}, 400, 0),
]


async def test_processes_at_once_never_exceed_a_limit(redis_url: str) -> None:
    command = forked.python("tests.access.limited_client", redis_url)
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT, **pipes) for _ in range(3)]

    async def read_lines() -> list[bytes]:
        return [await process.stdout.readline() for process in processes if process.stdout]

    contested = 0
    assert await read_lines() == [b"ready\n"] * 3
    for limits, allowed, a_second in CONTESTED:
        with Redis.from_url(redis_url) as client:
            client.flushall()
        began = time.monotonic()
        for process in processes:
            assert process.stdin
            process.stdin.write(json.dumps(limits).encode() + b"\n")
        counts = [int(line) for line in await read_lines()]
        assert allowed <= sum(counts) <= allowed + a_second * (time.monotonic() - began), (limits, counts)
        contested += sum(count > 0 for count in counts) > 1
    assert contested
    for process in processes:
        process.terminate()
        await process.wait()


async def test_gateways_share_the_places_of_concurrent_requests(gateways: Gateways) -> None:
    one, other = [account_of(await gateways(), concurrent_requests=5) for _ in range(2)]
    running = await admitted(one, 9)
    assert len(running) == 5
    assert not await admitted(other, 3)
    one.settle(running[0], ONE)
    await wait_until(lambda: _some(other))
    assert not await admitted(other, 3)


async def _some(account: Account, use: Amounts = ONE) -> bool:
    return bool(await admitted(account, 1, use))


async def test_tokens_that_one_gateway_did_not_use_are_there_for_the_others(gateways: Gateways) -> None:
    one, other = [account_of(await gateways(), tokens_per_minute=1000) for _ in range(2)]
    taken = await one.reserve(tokens(950))
    assert not await admitted(other, 1, tokens(500))
    one.settle(taken, tokens(10))
    await wait_until(lambda: _some(other, tokens(500)))


async def test_what_is_spent_beyond_the_estimate_holds_the_others_too(gateways: Gateways) -> None:
    one, other = [account_of(await gateways(), dollars_per_day=1) for _ in range(2)]
    one.settle(await one.reserve(dollars(0.1)), dollars(0.95))

    async def refused() -> bool:
        taken = await admitted(other, 1, dollars(0.1))
        for each in taken:
            other.settle(each, dollars(0))
        return not taken

    await wait_until(refused)


async def test_a_request_without_tokens_reports_the_tokens_that_others_left(gateways: Gateways) -> None:
    one, other = [account_of(await gateways(), tokens_per_minute=1000) for _ in range(2)]
    with refilling(1000) as refilled:
        await one.reserve(tokens(950))
        await other.reserve(ONE)
        assert other.remaining()[0] <= 50 + refilled()


async def test_a_busy_gateway_asks_redis_seldom(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    refills = 0
    limiter = await gateways()
    account = account_of(limiter, requests_per_minute=1_000_000, tokens_per_minute=1_000_000_000)
    refill = limiter.refill

    async def counted(key: str, arguments: list[str | float]) -> list[float]:
        nonlocal refills
        refills += 1
        return await refill(key, arguments)

    monkeypatch.setattr(limiter, "refill", counted)
    for _ in range(5000):
        account.settle(await account.reserve(tokens(500)), tokens(400))
    assert refills < 500


async def test_asking_and_giving_back_at_the_same_moment_end_both(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MAX_PREFETCH_SHARE", 0)
    monkeypatch.setattr(redis, "RETURN_INTERVAL_SECONDS", 0)
    account = account_of(await gateways(), tokens_per_minute=1_000_000)
    async with asyncio.timeout(60):
        for _ in range(300):
            account.settle(await account.reserve(tokens(100)), tokens(50))


async def test_an_idle_gateway_holds_nothing(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_account, "IDLE_SECONDS", 0.1)
    one, other = [account_of(await gateways(), requests_per_minute=6000, concurrent_requests=6000) for _ in range(2)]
    for _ in range(200):
        one.settle(await one.reserve(ONE), ONE)

    async def nothing_held() -> bool:
        for taken in await admitted(other, 1):
            other.settle(taken, ONE)
        return other.remaining()[0] == 6000

    await wait_until(nothing_held)


async def test_a_gateway_that_ends_returns_its_leases(redis_url: str) -> None:
    async with RedisLimiter(redis_url) as first, RedisLimiter(redis_url) as second:
        async with RedisLimiter(redis_url) as ending:
            account = account_of(ending, dollars_per_day=100)
            for _ in range(20):
                account.settle(await account.reserve(dollars(0.01)), dollars(0))
        for limiter in (first, second):
            account_of(limiter, dollars_per_day=100)
        assert await admitted(account_of(first, dollars_per_day=100), 1, dollars(100))


def slots(client: Redis) -> dict[bytes, tuple[bytes, float]]:
    """Return how many slots each gateway holds, and the time at which they are free again."""
    held = {name: value.partition(b":") for name, value in client.hgetall("coe:use:{alice}:leases").items()}
    return {name: (count, float(ends)) for name, (count, _, ends) in held.items()}


async def test_slots_of_a_gateway_that_crashed_are_free_again(gateways: Gateways, redis_url: str) -> None:
    crashed = RedisLimiter(redis_url)  # never entered: nobody keeps its slots alive
    assert len(await admitted(account_of(crashed, concurrent_requests=2), 5)) == 2
    other = account_of(await gateways(), concurrent_requests=2)
    assert not await admitted(other, 2)
    with Redis.from_url(redis_url) as client:
        ((name, (count, ends)),) = slots(client).items()
        seconds, _ = client.time()
        assert seconds - 60 < ends - shared_account.SLOT_LEASE_SECONDS < seconds + 1
        client.hset("coe:use:{alice}:leases", name, count + b":%d" % (seconds - 1))  # as if the time had passed
    await wait_until(lambda: _some(other))
    await crashed._redis.aclose()


async def test_slots_of_long_answers_stay_taken(
    gateways: Gateways, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_account, "SLOT_LEASE_SECONDS", 3.0)  # renewed after one
    one, other = [account_of(await gateways(), concurrent_requests=1) for _ in range(2)]
    assert await admitted(one, 1)
    with Redis.from_url(redis_url) as client:
        ((name, (_, first)),) = slots(client).items()

        async def renewed() -> bool:
            return slots(client)[name][1] > first

        await wait_until(renewed)
    assert not await admitted(other, 1)


async def test_a_client_that_leaves_during_a_refill_loses_nothing(gateways: Gateways) -> None:
    account = account_of(await gateways(), dollars_per_day=1)
    task = asyncio.create_task(account.reserve(dollars(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await admitted(account, 1, dollars(1))


# ------------------------------------------------------------------------------------------------- without Redis


@pytest.fixture
def own_server(tmp_path: Path) -> RedisServer:
    server = RedisServer(tmp_path)
    server.start()
    return server


async def test_without_redis_each_gateway_counts_alone_and_logs_it_once(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "RECONNECT_SECONDS", 0.05)
    async with RedisLimiter(own_server.url) as limiter:
        account = account_of(limiter, requests_per_minute=60, dollars_per_day=10)
        with refilling(60) as refilled, caplog.at_level(logging.WARNING, "gateway"):
            assert len(await admitted(account, 20)) == 20
            own_server.kill()
            assert 40 <= len(await admitted(account, 120)) <= 41 + refilled()
            assert limiter.degraded
            await asyncio.sleep(0.2)
            assert len(caplog.records) == 1
        assert "each gateway counts for itself" in caplog.text
        money = await admitted(account, 1, Amounts(0, 0, 8))
        assert money

        own_server.start()
        await wait_until(lambda: _together(limiter))
        async with RedisLimiter(own_server.url) as other:
            account = account_of(other, dollars_per_day=10)
            assert not await admitted(account, 1, dollars(3))  # what was spent meanwhile is known to all
    own_server.kill()


async def _together(limiter: RedisLimiter) -> bool:
    return not limiter.degraded


async def test_a_hanging_redis_delays_requests_up_to_the_timeout_only(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "RECONNECT_SECONDS", 0.05)
    async with RedisLimiter(own_server.url) as limiter:
        account = account_of(limiter, concurrent_requests=100)
        running = await admitted(account, 1)
        own_server.signal(signal.SIGSTOP)
        monkeypatch.setattr(redis, "REFILL_TIMEOUT_SECONDS", 1.0)
        async with asyncio.timeout(100):  # half of what one timeout for each would take
            running += await admitted(account, 200)
        assert limiter.degraded
        assert len(running) == 100
        own_server.signal(signal.SIGCONT)
        await wait_until(lambda: _together(limiter))
        for taken in running:
            account.settle(taken, ONE)
        assert len(await admitted(account, 200)) == 100
    own_server.kill()


async def test_a_redis_that_is_away_at_the_start_is_waited_for(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "RECONNECT_SECONDS", 0.05)
    own_server.kill()
    async with RedisLimiter(own_server.url) as limiter:
        account = account_of(limiter, requests_per_minute=60)
        with refilling(60) as refilled:
            assert 60 <= len(await admitted(account, 120)) <= 61 + refilled()
        own_server.start()
        await wait_until(lambda: _together(limiter))
    own_server.kill()


@asynccontextmanager
async def slow_to_open(server: RedisServer, seconds: float) -> AsyncIterator[str]:
    """Yields an address of the server at which the first bytes of a connection are passed on after some seconds."""
    connections = set[asyncio.Task[None] | None]()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(2**16):
                target.write(data)
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        await asyncio.sleep(seconds)
        replies, requests = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, requests), copy(replies, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        try:
            yield f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0"
        finally:
            await asyncio.gather(*filter(None, connections))


async def test_connections_that_open_slower_than_a_refill_may_take_are_opened_in_the_background(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr(redis, "CONNECT_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(redis, "REFILL_TIMEOUT_SECONDS", 0.5)
    async with slow_to_open(own_server, 1.0) as url, RedisLimiter(url) as limiter:
        account = account_of(limiter, requests_per_minute=10)
        assert len(await admitted(account, 1)) == 1
        assert limiter.degraded
        await wait_until(lambda: _together(limiter))
    own_server.kill()


async def test_a_redis_that_fails_again_while_it_comes_back_delays_no_request(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "RECONNECT_SECONDS", 0.01)
    async with RedisLimiter(own_server.url) as limiter:
        accounts = limiter.accounts([key_of(name, limits={"requests_per_minute": 10}) for name in ("a", "b")])
        run, asked = limiter._run_script, list[str]()

        async def every_second_one(key: str, arguments: list[str | float]) -> list[float]:
            asked.append(key)
            if len(asked) % 2 == 0:
                raise shared_account.RedisUnavailable("again")
            return await run(key, arguments)

        monkeypatch.setattr(limiter, "_run_script", every_second_one)
        async with asyncio.timeout(60):
            for _ in range(10):
                await accounts["a"].reserve(ONE)
                await accounts["b"].reserve(ONE)
                while len(asked) < 20:
                    await asyncio.sleep(0.01)
    own_server.kill()
