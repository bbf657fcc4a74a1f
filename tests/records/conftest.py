"""The logs under test: in a SQLite file, and on a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coe.feedback import FeedbackLog
from coe.record import RoutingLog
from coe.records import open_feedback, open_log
from tests.records.redis_server import MISSING, RedisServer, installed


@pytest.fixture(scope="package")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not installed():
        pytest.skip(MISSING)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
async def log_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty log, of each kind in turn."""
    if request.param == "sqlite":
        return "sqlite:///records/log.db"
    url: str = request.getfixturevalue("redis_url")
    async with Redis.from_url(url) as client:
        await client.flushall()
    return url


@pytest.fixture
async def opened(log_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., RoutingLog]]:
    """Opens that log, as often as a test wants."""
    logs: list[RoutingLog] = []

    def build(**options: float) -> RoutingLog:
        logs.append(open_log(log_url, base=tmp_path, **options))
        return logs[-1]

    yield build
    for log in logs:
        await log.aclose()


@pytest.fixture
def log(opened: Callable[..., RoutingLog]) -> RoutingLog:
    return opened()


@pytest.fixture
async def opened_feedback(log_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., FeedbackLog]]:
    """Opens the feedback beside that log, as often as a test wants."""
    logs: list[FeedbackLog] = []

    def build(**options: float) -> FeedbackLog:
        logs.append(open_feedback(log_url, base=tmp_path, **options))
        return logs[-1]

    yield build
    for log in logs:
        await log.aclose()


@pytest.fixture
def feedback(opened_feedback: Callable[..., FeedbackLog]) -> FeedbackLog:
    return opened_feedback()
