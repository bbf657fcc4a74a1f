"""The logs under test: in a SQLite file, and on a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coe.records import open_log_and_feedback
from coe.records.record import FeedbackLog, RoutingLog


@pytest.fixture(params=["sqlite", "redis"])
async def log_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty log, of each kind in turn."""
    if request.param == "sqlite":
        return "sqlite:///records/log.db"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
async def opened(log_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., RoutingLog]]:
    """Opens that log, as often as a test wants."""
    logs: list[RoutingLog] = []

    def build(**options: float) -> RoutingLog:
        logs.append(open_log_and_feedback(log_url, base=tmp_path, **options)[0])
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
        logs.append(open_log_and_feedback(log_url, base=tmp_path, **options)[1])
        return logs[-1]

    yield build
    for log in logs:
        await log.aclose()


@pytest.fixture
def feedback(opened_feedback: Callable[..., FeedbackLog]) -> FeedbackLog:
    return opened_feedback()
