"""The contract of RoutingLog, for each kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from coe.errors import StoreError
from coe.records.record import LogQuery, RoutingLog
from tests.records.samples import everything, ids, record, records

pytestmark = pytest.mark.anyio


async def test_a_record_comes_back_as_it_was_put(log: RoutingLog) -> None:
    full = record(1, prompt="né 日本語 🦜\n\0'\";", session="s-1", category="médecine")
    bare = record(2, first_token_ms=None, input_tokens=None, output_tokens=None, candidates=(), probabilities={})
    await log.append([full, bare])
    assert (await log.read(LogQuery())).records == (full, bare)


async def test_a_request_id_is_kept_once_and_the_first_record_wins(log: RoutingLog) -> None:
    await log.append([record(1), record(1, outcome="aborted"), record(2)])
    await log.append([record(2, outcome="aborted"), record(1, outcome="aborted"), record(3)])
    assert await everything(log) == [record(1), record(2), record(3)]


async def test_pages_follow_one_another_in_the_order_of_appending(log: RoutingLog) -> None:
    await log.append(list(reversed(records(25))))
    await log.append(records(5, start=25))
    expected = ids(list(reversed(records(25))) + records(5, start=25))
    assert ids(await everything(log, LogQuery(limit=7))) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (LogQuery(category="law"), [1, 4]),
        (LogQuery(expert="größer"), [2, 4]),
        (LogQuery(outcome="aborted"), [3]),
        (LogQuery(since=1_700_000_003.0), [3, 4]),
        (LogQuery(category="law", expert="größer"), [4]),
        (LogQuery(category="law", since=1_700_000_002.0, outcome="ok"), [4]),
        (LogQuery(category="' OR 1=1 --"), []),
        (LogQuery(reason="fallback"), [0, 3]),
        (LogQuery(session='s"1'), [2, 3]),
        (LogQuery(tenant="retail"), [1]),
        (LogQuery(session='s"1', reason="fallback"), [3]),
        (LogQuery(request_id="request-000003"), [3]),
        (LogQuery(request_id="request-0000", outcome="aborted"), [3]),
        (LogQuery(request_id="req"), [0, 1, 2, 3, 4]),
        (LogQuery(request_id="equest"), []),
    ],
)
async def test_a_filter_lets_through_what_it_names(log: RoutingLog, query: LogQuery, expected: list[int]) -> None:
    changes: dict[int, dict[str, object]] = {
        0: {"reason": "fallback"},
        1: {"category": "law", "tenant": "retail", "prompt": '"session":"s\\"1","tenant":"retail"'},
        2: {"expert": "größer", "session": 's"1'},
        3: {"outcome": "aborted", "session": 's"1', "reason": "fallback"},
    }
    changes[4] = {"category": "law", "expert": "größer"}
    await log.append([record(number, **changes.get(number, {})) for number in range(5)])
    wanted = [record(number).request_id for number in expected]
    assert ids((await log.read(query)).records) == wanted
    assert ids((await log.back(query)).records) == wanted[::-1]


async def test_a_time_span_lets_through_what_lies_in_it(log: RoutingLog) -> None:
    now = time.time()
    await log.append(
        [record(number, time=now + number, category="law" if number % 2 else "code") for number in range(9)]
    )
    for query, expected in (
        (LogQuery(until=now + 3), [0, 1, 2, 3]),
        (LogQuery(since=now + 2, until=now + 5), [2, 3, 4, 5]),
        (LogQuery(since=now + 2, until=now + 6, category="law"), [3, 5]),
        (LogQuery(until=now - 1), []),
    ):
        wanted = [record(number).request_id for number in expected]
        assert ids((await log.read(query)).records) == wanted
        assert ids((await log.back(query)).records) == wanted[::-1]


async def test_walking_back_sees_every_match_once_and_ends(log: RoutingLog) -> None:
    await log.append([record(number, category="law" if number % 3 else "code") for number in range(40)])
    for query, expected in (
        (LogQuery(limit=7), list(range(39, -1, -1))),
        (LogQuery(limit=20), list(range(39, -1, -1))),
        (LogQuery(category="code", limit=4), list(range(39, -1, -3))),
        (LogQuery(category="code", outcome="ok", limit=7), list(range(39, -1, -3))),
    ):
        found = []
        while True:
            page = await log.back(query)
            found += ids(page.records)
            if not page.cursor:
                break
            assert len(page.records) == query.limit
            query = replace(query, before=page.cursor)
        assert found == [record(number).request_id for number in expected]


async def test_walking_back_for_what_is_met_nowhere_takes_steps_of_a_bounded_length(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.records.redis_log.MAX_SCANNED", 20)
    monkeypatch.setattr("coe.records.redis_log.SCAN_CHUNK", 10)
    monkeypatch.setattr("coe.records.sqlite.MAX_SCANNED", 20)
    old = record(0, expert="large", category="law")
    await log.append(
        [old] + [record(n, **({"expert": "large"} if n % 2 else {"category": "law"})) for n in range(1, 50)]
    )
    query, pages = LogQuery(expert="large", category="law"), []
    while True:
        pages.append(page := await log.back(query))
        if not page.cursor:
            break
        query = replace(query, before=page.cursor)
    assert [ids(page.records) for page in pages] == [[], [], [old.request_id]]


async def test_reading_goes_on_after_the_newest_page_even_if_the_last_record_did_not_match(log: RoutingLog) -> None:
    await log.append([record(0), record(1, category="law")])
    end = (await log.back(LogQuery(category="code", limit=1))).end
    again = await log.read(LogQuery(after=end))
    assert (again.records, again.cursor) == ((), end)
    await log.append([record(2)])
    assert ids((await log.read(LogQuery(after=end))).records) == [record(2).request_id]


@pytest.mark.parametrize("cursor", ["yesterday", "-1", "1-2-3", "1; DROP TABLE records", "٣"])
async def test_a_cursor_from_elsewhere_is_refused_by_name(log: RoutingLog, cursor: str) -> None:
    await log.append(records(1))
    for method in (log.read, log.back):
        with pytest.raises(StoreError, match="not a cursor of this log"):
            await method(LogQuery(after=cursor))
        with pytest.raises(StoreError, match="not a cursor of this log"):
            await method(LogQuery(before=cursor))


async def test_a_record_of_a_newer_schema_is_refused_with_the_remedy(log: RoutingLog) -> None:
    await log.append([record(1, schema=2)])
    with pytest.raises(StoreError, match="upgrade"):
        await log.read(LogQuery())


async def test_two_writers_at_once_lose_nothing_and_double_nothing(opened: Callable[..., RoutingLog]) -> None:
    first, second = opened(), opened()
    shared = [records(50, start=50 * part) for part in range(6)]
    await asyncio.gather(*(log.append(part) for part in shared for log in (first, second)))
    assert sorted(ids(await everything(first))) == ids(records(300))


async def test_the_oldest_records_make_room_beyond_the_retention(opened: Callable[..., RoutingLog]) -> None:
    log = opened(retention=200)
    for start in range(0, 2_000, 250):
        await log.append(records(250, start=start))
    kept = ids(await everything(log))
    assert 200 <= len(kept) < 400  # a stream drops whole nodes, so it may keep a few more
    assert kept == ids(records(len(kept), start=2_000 - len(kept)))


async def test_a_record_is_found_by_its_id_until_it_makes_room(opened: Callable[..., RoutingLog]) -> None:
    log = opened(retention=200)
    assert await log.find(record(0).request_id) is None
    await log.append(records(1_200))
    await log.append([record(1_100, outcome="again"), record(1_200, utility=(0.5, 0.25), propensities=(0.95, 0.05))])
    assert await log.find(record(1_100).request_id) == record(1_100)
    assert await log.find(record(1_200).request_id) == record(1_200, utility=(0.5, 0.25), propensities=(0.95, 0.05))
    for unknown in (record(0).request_id, "", "nobody\0's", "' OR 1=1 --"):
        assert await log.find(unknown) is None
