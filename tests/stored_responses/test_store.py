"""The store of answers while its file or its Redis is unavailable."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from coe import outage
from coe.errors import ResponsesUnavailable
from coe.registry import StoredResponsesSpec
from gateway.request.stored_step import open_stored_step
from gateway.stored_responses import store
from gateway.stored_responses.store import ResponseStore, response_store
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def store_of(spec: str, home: Path) -> ResponseStore:
    found = response_store(StoredResponsesSpec(store=spec), home)
    assert found is not None
    return found


@pytest.mark.parametrize("was_there", [False, True])
async def test_a_folder_that_cannot_be_used_stops_no_start_and_the_file_follows(
    tmp_path: Path, was_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.0)
    home = tmp_path / "home"
    home.write_text("a file where the folder should be")
    spec = StoredResponsesSpec(store="sqlite")
    async with open_stored_step(spec, home, count=[].append) as step:
        assert step is not None
        with pytest.raises(ResponsesUnavailable, match=r"stored-responses\.sqlite.*check that the disk has room"):
            await step.store.put("a", {"1": b"1"})
        assert step.degraded
        home.unlink()
        if was_there:
            home.mkdir()
        await step.store.put("a", {"1": b"1"})
        assert not step.degraded


async def test_redis_that_hangs_is_asked_again_after_a_pause(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = store_of(redis_server.url, tmp_path)
    await shared.put("a", {"1": b"1"})
    assert (await shared.get("a", ["1"]), await shared.sizes("a", ["1", "2"])) == ([b"1"], [1, 0])
    assert await shared.delete("b", ["1"]) == 0
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 0.05)
    redis_server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(ResponsesUnavailable):
            await shared.get("a", ["1"])
        monkeypatch.setattr(store, "TIMEOUT_SECONDS", 60.0)
        async with asyncio.timeout(30):
            with pytest.raises(ResponsesUnavailable, match="failed less than"):
                await shared.get("a", ["1"])
    finally:
        redis_server.signal(signal.SIGCONT)
    shared.outage.retry_now()
    assert await shared.get("a", ["1"]) == [b"1"]
    assert not shared.outage.active
    await shared.aclose()
