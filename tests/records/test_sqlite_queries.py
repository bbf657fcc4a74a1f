"""Queries and deletions of the SQLite log, and the indexes that they use."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from coe.records import open_log_and_feedback, sqlite
from coe.records.record import LogQuery, RoutingLog, RoutingRecord
from coe.records.sqlite import TABLES, VERSION, Database, SqliteLog
from tests.records.samples import everything, record, records
from tests.records.test_feedback_logs import event

pytestmark = pytest.mark.anyio

T = TypeVar("T")


def mixed(count: int) -> list[RoutingRecord]:
    """Records with ordinary and rare values of each filter."""
    return [
        record(
            n,
            category="law" if n % 7 == 0 else "code",
            expert="lawyer" if n % 5 == 0 else "coder",
            outcome="expert_timeout" if n % 11 == 0 else "ok",
            reason="fallback" if n % 13 == 0 else "routed",
            tenant="acme" if n % 3 == 0 else None,
            session="chat" if n % 4 == 0 else None,
        )
        for n in range(count)
    ]


async def backwards(log: RoutingLog, query: LogQuery) -> AsyncIterator[RoutingRecord]:
    while True:
        page = await log.back(query)
        for one in page.records:
            yield one
        if not page.cursor:
            return
        query = replace(query, before=page.cursor)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "log.db", tables=TABLES, version=VERSION)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[RoutingLog]:
    log = SqliteLog(database, retention=10_000, days=None)
    yield log
    await log.aclose()


@pytest.mark.parametrize("scanned", [70, 200_000])
async def test_every_combination_of_filters_finds_the_same_rows_in_each_direction(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED", scanned)
    appended = mixed(300)
    await log.append(appended)
    choices = {
        "category": ("", "law", "none"),
        "expert": ("", "lawyer"),
        "outcome": ("", "expert_timeout"),
        "reason": ("", "fallback"),
        "tenant": ("", "acme"),
        "session": ("", "chat"),
        "request_id": ("", appended[0].request_id[:-1]),
        "since": (0.0, appended[5].time),
        "until": (math.inf, appended[250].time),
    }
    for values in random.Random(7).sample(list(itertools.product(*choices.values())), 40):
        query = LogQuery(limit=1_000, **dict(zip(choices, values, strict=True)))  # type: ignore[arg-type]
        wanted = [one for one in appended if query.matches(one)]
        assert await everything(log, query) == wanted
        assert [one async for one in backwards(log, query)] == wanted[::-1]


async def test_a_lowered_retention_takes_effect_at_the_first_append(tmp_path: Path) -> None:
    log, feedback = open_log_and_feedback("sqlite:///log.db", base=tmp_path)
    await log.append(records(3_000))
    await feedback.append([event(n) for n in range(3_000)])
    await log.aclose()
    log, feedback = open_log_and_feedback("sqlite:///log.db", base=tmp_path, retention=1_000)
    await log.append([record(3_000)])
    await feedback.append([event(3_000)])
    page = await feedback.read(limit=10_000)
    assert len(await everything(log)) == len(page.events) == 1_000
    await log.aclose()
