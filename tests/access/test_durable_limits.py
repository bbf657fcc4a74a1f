"""Counts in memory that outlive the process, in the state folder."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from coe import outage
from coe.errors import LimitReached
from gateway.access.issued_keys import KEYS_FILE
from gateway.access.limits import Account, Amounts, Limiter
from gateway.shared_store import SqliteStore
from tests.access.samples import Clock, account_of, dollars, remaining_of
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


def file_limiter(folder: Path, clock: Callable[[], float] = time.time) -> Limiter:
    return Limiter(SqliteStore(folder / KEYS_FILE, clock=clock), clock=clock)


def written(folder: Path) -> dict[str, float]:
    """Return the use that the file records, by meter."""
    if not (folder / KEYS_FILE).exists():
        return {}
    with closing(sqlite3.connect(folder / KEYS_FILE)) as file:
        try:
            rows = file.execute("SELECT name, used FROM counters WHERE used <> 0").fetchall()
        except sqlite3.OperationalError:  # not made yet
            return {}
    return {name.split("/")[1]: used for name, used in rows}


async def used(account: Account, use: Amounts) -> None:
    account.settle(await account.reserve(use), use)


async def test_money_and_tokens_are_spent_after_a_restart_too(tmp_path: Path, clock: Clock) -> None:
    limits = {"dollars_per_day": 1, "dollars_per_month": 5, "tokens_per_minute": 600, "requests_per_minute": 10}
    async with file_limiter(tmp_path, clock) as limiter:
        await used(account_of(limiter, **limits), Amounts(1, 600, 0.9))
    async with file_limiter(tmp_path, clock) as limiter:
        account = account_of(limiter, **limits)
        await account.reserve(Amounts(0, 0, 0))
        left = dict(zip([counter.name for counter in account.counters], remaining_of(account), strict=True))
        assert left["dollars_per_day"] == pytest.approx(0.1)
        assert left["dollars_per_month"] == pytest.approx(4.1)
        assert (left["tokens_per_minute"], left["requests_per_minute"]) == (0, 9)
        with pytest.raises(LimitReached, match="dollars_per_day"):
            await account.reserve(dollars(0.2))


async def test_a_request_that_a_crash_ends_costs_what_was_reserved(tmp_path: Path, clock: Clock) -> None:
    async with file_limiter(tmp_path, clock) as limiter:
        await account_of(limiter, dollars_per_day=1).reserve(dollars(0.8))
        await wait_until(lambda: written(tmp_path))
        async with file_limiter(tmp_path, clock) as next_one:
            account = account_of(next_one, dollars_per_day=1)
            await account.reserve(dollars(0))
            assert remaining_of(account) == [pytest.approx(0.2)]


async def test_requests_go_on_while_the_file_cannot_be_written_and_it_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.02)
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    async with file_limiter(folder) as limiter:
        account = account_of(limiter, dollars_per_day=1)
        await used(account, dollars(0.3))
        await wait_until(lambda: limiter.outage.active)
        await used(account, dollars(0.3))
        folder.unlink()
        await wait_until(lambda: not limiter.outage.active)
        assert remaining_of(account) == [pytest.approx(0.4)]
    assert written(folder) == {"dollars_per_day": pytest.approx(0.6)}
    assert [record.message for record in caplog.records if "each gateway counts for itself" in record.message]


async def test_a_damaged_file_is_logged_and_stops_no_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / KEYS_FILE).write_bytes(b"no database" * 1000)
    async with file_limiter(tmp_path) as limiter:
        await wait_until(lambda: limiter.outage.active)
        await used(account_of(limiter, dollars_per_day=1), dollars(0.3))
    assert "not a database" in caplog.text
