"""The store of answers while its file or its Redis is unavailable."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from coe import outage
from coe.errors import ResponsesUnavailable
from coe.registry import StoredResponsesSpec
from gateway import shared_store
from gateway.request.stored_step import open_stored_step
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def test_a_folder_that_cannot_be_used_stops_no_start_and_the_file_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.0)
    home = tmp_path / "home"
    home.write_text("a file where the folder should be")
    spec = StoredResponsesSpec(store="sqlite")
    async with open_stored_step(spec, home, count=[].append) as step:
        assert step is not None
        with pytest.raises(ResponsesUnavailable, match=r"stored-responses\.sqlite.*check that the disk has room"):
            await step.call(step.store.put, {"1": b"1"}, ttl=60.0)
        assert step.outage.active
        home.unlink()
        await step.call(step.store.put, {"1": b"1"}, ttl=60.0)
        assert not step.outage.active


async def test_redis_that_hangs_is_asked_again_after_a_pause(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_store, "REDIS_TIMEOUT_SECONDS", 60.0)
    async with open_stored_step(StoredResponsesSpec(store=redis_server.url), tmp_path, count=[].append) as step:
        assert step is not None
        await step.call(step.store.put, {"1": b"1"}, ttl=60.0)
        monkeypatch.setattr(shared_store, "REDIS_TIMEOUT_SECONDS", 0.05)
        redis_server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(ResponsesUnavailable):
                await step.call(step.store.get, ["1"])
            monkeypatch.setattr(shared_store, "REDIS_TIMEOUT_SECONDS", 60.0)
            async with asyncio.timeout(30):
                with pytest.raises(ResponsesUnavailable, match="failed less than"):
                    await step.call(step.store.get, ["1"])
        finally:
            redis_server.signal(signal.SIGCONT)
        step.outage.retry_now()
        assert await step.call(step.store.get, ["1"]) == [b"1"]
        assert not step.outage.active
