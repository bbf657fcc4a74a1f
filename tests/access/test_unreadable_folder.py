"""Keys and limits while the state folder may not be searched."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coe import outage
from gateway.access import open_limiter
from gateway.access.access import KEY_USAGE_FILE
from gateway.access.issued import MAX_STALE_SECONDS, IssuedKeyWatch
from gateway.access.key_store import KeyStore, change
from gateway.shared_store import SqliteStore
from tests.access.samples import Clock, account_of, dollars
from tests.access.test_durable_limits import used, written
from tests.access.test_issued_keys import issued
from tests.permissions import without_access
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_keys_in_a_folder_that_may_not_be_searched_any_more_are_refused_after_five_minutes_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, clock = tmp_path / "home", Clock()
    store = KeyStore(SqliteStore(folder / "keys.sqlite"))
    await change(store, lambda before: (None, issued({"name": "app"}, before=before)))
    watch = IssuedKeyWatch(store, clock=clock)
    await watch.refresh()
    with without_access(folder):
        await watch.refresh()
        assert (len(watch.keys), watch.outage.active) == (1, True)
        clock.ahead = MAX_STALE_SECONDS + 1
        await watch.refresh()
        assert watch.keys == ()
    await watch.refresh()
    assert (len(watch.keys), watch.outage.active) == (1, False)
    assert f"{folder / 'keys.sqlite'}: Permission denied; check that the disk has room and that" in caplog.text
    await store.aclose()


async def test_a_folder_that_may_not_be_searched_stops_no_gateway_and_the_use_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.02)
    folder = tmp_path / "home"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        with without_access(folder):
            limiter = await stack.enter_async_context(open_limiter("memory", home=folder))
            await wait_until(lambda: limiter.outage.active)
        await used(account_of(limiter, dollars_per_day=1), dollars(0.3))
        await wait_until(lambda: not limiter.outage.active)
    assert written(folder) == {"dollars_per_day": pytest.approx(0.3)}
    assert f"{folder / KEY_USAGE_FILE}: Permission denied" in caplog.text
