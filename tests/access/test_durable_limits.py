"""Counts in memory that outlive the process, in the state folder."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coe.errors import LimitReached
from gateway.access import durable
from gateway.access.durable import (
    KEY_USAGE_FILE,
    RETENTION_SECONDS,
    DurableLimiter,
    StoredUse,
    UsageStore,
    add_change,
)
from gateway.access.limits import Account, Amounts, Meter, UseChange
from tests.access.samples import ONE, Clock, account_of, dollars, key_of
from tests.gateway.served import serving
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

DAY = Meter("dollars_per_day", 1.0, 2)
TOKENS = Meter("tokens_per_minute", 600.0, 1)


def written(folder: Path) -> dict[str, float]:
    """Return the use that the file records, by meter."""
    if not (folder / KEY_USAGE_FILE).exists():
        return {}
    with closing(sqlite3.connect(folder / KEY_USAGE_FILE)) as file:
        try:
            return dict(file.execute("SELECT meter, used FROM use"))
        except sqlite3.OperationalError:  # not made yet
            return {}


async def used(account: Account, use: Amounts) -> None:
    account.settle(await account.reserve(use), use)


async def test_money_and_tokens_are_spent_after_a_restart_too(tmp_path: Path, clock: Clock) -> None:
    limits = {"dollars_per_day": 1, "dollars_per_month": 5, "tokens_per_minute": 600, "requests_per_minute": 10}
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        await used(account_of(limiter, **limits), Amounts(1, 600, 0.9))
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        account = account_of(limiter, **limits)
        left = dict(zip([meter.name for meter in account.meters], account.remaining(), strict=True))
        assert left["dollars_per_day"] == pytest.approx(0.1)
        assert left["dollars_per_month"] == pytest.approx(4.1)
        assert left["tokens_per_minute"] == pytest.approx(0, abs=60)  # ten come each second
        assert left["requests_per_minute"] == pytest.approx(9, abs=1)
        with pytest.raises(LimitReached, match="dollars_per_day"):
            await account.reserve(dollars(0.2))


async def test_a_bucket_refills_and_a_day_ends_while_no_process_runs(tmp_path: Path, clock: Clock) -> None:
    limits = {"dollars_per_day": 1, "tokens_per_minute": 600}
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        await used(account_of(limiter, **limits), Amounts(1, 600, 1))
    clock.ahead += 86_400
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        assert account_of(limiter, **limits).remaining() == [600, 1]


async def test_what_was_reserved_and_not_used_comes_back(tmp_path: Path, clock: Clock) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        account = account_of(limiter, dollars_per_day=1)
        account.settle(await account.reserve(dollars(0.8)), dollars(0.1))
    assert written(tmp_path) == {"dollars_per_day": pytest.approx(0.1)}


async def test_a_request_that_a_crash_ends_costs_what_was_reserved(tmp_path: Path, clock: Clock) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as limiter:
        await account_of(limiter, dollars_per_day=1).reserve(dollars(0.8))
        await wait_until(lambda: written(tmp_path))
        async with DurableLimiter(tmp_path / KEY_USAGE_FILE, clock=clock) as next_one:
            assert account_of(next_one, dollars_per_day=1).remaining() == [pytest.approx(0.2)]


async def test_concurrency_slots_are_not_stored(tmp_path: Path) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as limiter:
        await account_of(limiter, concurrent_requests=1).reserve(ONE)
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as limiter:
        await account_of(limiter, concurrent_requests=1).reserve(ONE)
    assert not (tmp_path / KEY_USAGE_FILE).exists()


async def test_processes_that_share_a_folder_see_each_others_money(tmp_path: Path) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as one, DurableLimiter(tmp_path / KEY_USAGE_FILE) as other:
        accounts = [account_of(limiter, dollars_per_day=1) for limiter in (one, other)]
        for account in accounts:
            await used(account, dollars(0.3))
        await wait_until(lambda: written(tmp_path).get("dollars_per_day", 0) > 0.5)
        for account in accounts:  # a write is what shows the others' part
            await used(account, dollars(0.1))
        await wait_until(lambda: written(tmp_path)["dollars_per_day"] > 0.7)
        await wait_until(lambda: min(account.remaining()[0] for account in accounts) == pytest.approx(0.2))
    assert written(tmp_path) == {"dollars_per_day": pytest.approx(0.8)}


async def test_a_key_that_is_declared_again_has_spent_what_it_had(tmp_path: Path) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as limiter:
        await used(account_of(limiter, dollars_per_day=1), dollars(0.5))
        await wait_until(lambda: written(tmp_path))
        await wait_until(lambda: not limiter._changes)
        limiter.accounts([key_of("bob", limits={"dollars_per_day": 1})])
        await wait_until(lambda: account_of(limiter, dollars_per_day=1).remaining() == [0.5])


async def test_requests_go_on_while_the_file_cannot_be_written_and_it_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(durable, "WRITE_INTERVAL_SECONDS", 0.02)
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    async with DurableLimiter(folder / KEY_USAGE_FILE) as limiter:
        account = account_of(limiter, dollars_per_day=1)
        await used(account, dollars(0.3))
        await wait_until(lambda: limiter.degraded)
        await used(account, dollars(0.3))
        folder.unlink()
        await wait_until(lambda: not limiter.degraded)
        assert account.remaining() == [pytest.approx(0.4)]
    assert written(folder) == {"dollars_per_day": pytest.approx(0.6)}
    assert [record.message for record in caplog.records if "counted in memory only" in record.message]


async def test_a_damaged_file_is_logged_and_stops_no_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / KEY_USAGE_FILE).write_bytes(b"no database" * 1000)
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as limiter:
        assert limiter.degraded
        await used(account_of(limiter, dollars_per_day=1), dollars(0.3))
    assert "not a database" in caplog.text


async def test_use_that_is_too_old_to_count_is_deleted(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / KEY_USAGE_FILE)
    await store.add({("alice", DAY.name): [UseChange(DAY, 1, 0.5)]}, now=1000.0)
    assert await store.load(now=1000.0 + RETENTION_SECONDS - 1) == {("alice", DAY.name): StoredUse(1, 0.5, 1000.0)}
    assert await store.load(now=1000.0 + RETENTION_SECONDS + 1) == {}
    await store.aclose()


@pytest.mark.parametrize(
    ("known", "change", "found"),
    [
        (None, UseChange(DAY, 5, 0.5), StoredUse(5, 0.5, 60)),
        (StoredUse(5, 0.25, 0), UseChange(DAY, 5, 0.5), StoredUse(5, 0.75, 60)),
        (StoredUse(4, 0.25, 0), UseChange(DAY, 5, 0.5), StoredUse(5, 0.5, 60)),
        (StoredUse(6, 0.25, 0), UseChange(DAY, 5, 0.5), StoredUse(6, 0.25, 0)),
        (StoredUse(5, 0.25, 0), UseChange(DAY, 5, -0.5), StoredUse(5, 0.0, 60)),
        (StoredUse(0, 900, 0), UseChange(TOKENS, 0, 50), StoredUse(0, 350, 60)),
        (StoredUse(0, 100, 0), UseChange(TOKENS, 0, 50), StoredUse(0, 50, 60)),
        (StoredUse(0, 100, 600), UseChange(TOKENS, 0, 50), StoredUse(0, 150, 60)),
    ],
)
def test_changes_add_up_within_a_window_and_buckets_refill_between(
    known: StoredUse | None, change: UseChange, found: StoredUse
) -> None:
    assert add_change(known, change, now=60.0) == found


async def test_a_gateway_that_is_killed_has_not_forgotten_what_was_spent(tmp_path: Path) -> None:
    """An answer uses 6 tokens; at 1000 dollars a million that is 0.6 cents."""
    keys = [key_of(limits={"dollars_per_day": 0.02}, scopes=("chat", "admin")).model_dump(mode="json")]
    async with serving(tmp_path, access={"keys": keys}) as served, asyncio.timeout(60):
        priced = [expert | {"prices": {"input": 1000, "output": 1000}} for expert in served.declared["experts"]]
        await served.kill()
        served.declare(experts=priced)
        await served.start()

        async def status() -> int:
            body = {"model": "good", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            headers = {"x-api-key": "alice"}
            async with served.client.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
                return answer.status

        assert [await status() for _ in range(5)] == [200, 200, 200, 200, 429]
        await wait_until(lambda: written(tmp_path / ".coe").get("dollars_per_day", 0) == pytest.approx(0.024))
        await served.kill()
        await served.start()
        assert await status() == 429


async def test_tokens_of_a_key_with_several_limits_are_written_once_for_each(tmp_path: Path) -> None:
    async with DurableLimiter(tmp_path / KEY_USAGE_FILE) as limiter:
        account = account_of(limiter, tokens_per_minute=1e6, dollars_per_day=1)
        await asyncio.gather(*(used(account, Amounts(1, 10, 0.001)) for _ in range(100)))
        assert len(limiter._changes) == 2
    assert written(tmp_path)["tokens_per_minute"] == pytest.approx(1000)
