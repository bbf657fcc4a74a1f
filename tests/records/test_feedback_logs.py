"""The contract of FeedbackLog, for each kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from coe.errors import StoreError
from coe.records.record import Feedback, FeedbackLog
from tests.records.samples import record

pytestmark = pytest.mark.anyio


def event(number: int = 0, **changes: Any) -> Feedback:
    """A score of request `number` at second `number`."""
    fields: dict[str, Any] = {
        "event_id": f"event-{number:06d}",
        "request_id": record(number).request_id,
        "time": 1_700_000_000.125 + number,
        "kind": "score",
        "value": 0.5,
        "tenant": "retail",
        "key": "shop",
    }
    return Feedback(**(fields | changes))


async def events(log: FeedbackLog, *, limit: int = 1_000) -> list[Feedback]:
    """All of them, page by page."""
    found, cursor = list[Feedback](), ""
    while True:
        page = await log.read(after=cursor, limit=limit)
        found += page.events
        if page.cursor == cursor:
            return found
        cursor = page.cursor


async def test_events_come_back_as_they_were_put_and_in_that_order(feedback: FeedbackLog) -> None:
    put = [
        event(2),
        event(1, kind="thumb", value=-1),
        event(1, kind="preferred", value="größer", key=None, tenant=None),
        event(1, kind="category", value="law", event_id="né 日本語\n\0'\""),
        event(0, kind="regenerated", value=None),
    ]
    await feedback.append(put)
    assert await events(feedback) == put


async def test_pages_follow_one_another_and_the_cursor_stays_at_the_end(feedback: FeedbackLog) -> None:
    assert await feedback.read() == await feedback.read(limit=0)
    await feedback.append([event(number) for number in range(1_250)])
    assert await events(feedback, limit=99) == [event(number) for number in range(1_250)]
    end = (await feedback.read(limit=5_000)).cursor
    again = await feedback.read(after=end)
    assert (again.events, again.cursor) == ((), end)
    nothing = await feedback.read(after=end, limit=0)
    assert (nothing.events, nothing.cursor) == ((), end)


async def test_a_later_event_replaces_the_earlier_of_its_kind_and_key_and_comes_at_the_end(
    feedback: FeedbackLog,
) -> None:
    first, other = event(1), event(2)
    kept = [event(1, kind="thumb", value=1), event(1, key="app"), event(1, key=None)]
    await feedback.append([first, *kept, other])
    end = (await feedback.read()).cursor
    later = event(1, event_id="later", time=1_700_000_005.0, value=0.75)
    await feedback.append([later])
    assert await events(feedback) == [*kept, other, later]
    assert (await feedback.read(after=end)).events == (later,)


async def test_neither_the_order_of_arrival_nor_repetition_matters(
    opened_feedback: Callable[..., FeedbackLog],
) -> None:
    latest = event(1, event_id="b", time=1_700_000_003.0, value=1.0)
    put = [event(1, event_id=name, time=1_700_000_003.0 - age) for name, age in (("a", 0), ("z", 1), ("y", 2))]
    for seed in range(6):
        shuffled = [latest, *put, latest, *put]
        random.Random(seed).shuffle(shuffled)
        log = opened_feedback()
        for one in shuffled:
            await log.append([one])
        assert await events(log) == [latest]


async def test_the_oldest_events_make_room_and_changes_of_mind_do_not_drive_out_others(
    opened_feedback: Callable[..., FeedbackLog],
) -> None:
    log = opened_feedback(retention=200)
    await log.append([event(number) for number in range(100)])
    await log.append([event(50, event_id=f"again-{n:04d}", time=1_800_000_000.0 + n) for n in range(1_500)])
    assert len(await events(log)) == 100
    await log.append([event(number) for number in range(1_000, 2_500)])
    kept = await events(log)
    assert 200 <= len(kept) <= 200 + 1_000  # SQLite counts its rows only now and then
    assert kept == [event(number) for number in range(2_500 - len(kept), 2_500)]


async def test_events_older_than_the_days_go_at_the_next_append(opened_feedback: Callable[..., FeedbackLog]) -> None:
    now = time.time()
    old, new = (event(number, time=now - age) for number, age in ((1, 7_200.0), (2, 0.0)))
    await opened_feedback().append([old, event(3, time=now - 7_100)])
    log = opened_feedback(days=1 / 24)
    assert len(await events(log)) == 2
    await log.append([new])
    assert await events(log) == [new]


@pytest.mark.parametrize("cursor", ["yesterday", "1; DROP TABLE feedback", "٣", "9" * 40])
async def test_a_cursor_from_elsewhere_is_refused_by_name(feedback: FeedbackLog, cursor: str) -> None:
    with pytest.raises(StoreError, match="not a cursor of this log"):
        await feedback.read(after=cursor)


async def test_what_is_said_of_one_request_is_found_by_the_keys_that_may_have(feedback: FeedbackLog) -> None:
    sent = [
        event(1, kind="category", value="law", event_id="later", time=1_700_000_009.0),
        event(1, kind="thumb", value=1, event_id="first", time=1_700_000_000.0),
        event(1, key=None, tenant=None),
        event(1, key="somebody else"),
    ]
    await feedback.append([*sent, event(2)])
    request_id = record(1).request_id
    assert await feedback.for_request(request_id, keys=("shop", None)) == (sent[1], sent[2], sent[0])
    assert await feedback.for_request(request_id, keys=()) == ()
    assert await feedback.for_request("nobody's", keys=("shop", None)) == ()
