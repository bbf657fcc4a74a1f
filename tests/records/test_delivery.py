"""Nothing lost and nothing twice, with a real Redis that dies and a real process that is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coe.records import open_log_and_feedback
from tests.records.redis_server import MISSING, RedisServer, installed
from tests.records.samples import WatchedLog, everything, ids, in_spool, records, writer_to

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"interval": 0.001, "first_retry": 0.001, "max_retry": 0.01}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps what it has acknowledged, whatever happens to it."""
    if not installed():
        pytest.skip(MISSING)
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


async def test_a_redis_that_is_killed_and_restarted_while_writing_ends_with_every_record_once(
    server: RedisServer, tmp_path: Path
) -> None:
    log = WatchedLog(open_log_and_feedback(server.url, base=tmp_path)[0])
    async with writer_to(log, spool=tmp_path / "spool.db", batch=20, **QUICK) as writer:
        for round_ in range(3):
            for one in records(400, start=1_000 * round_):
                writer.put(one)
            await log.holds(1_000 * round_ + 60)
            server.kill()  # with appends under way and records in the queue
            for one in records(600, start=1_000 * round_ + 400):
                writer.put(one)
            tries = len(log.calls)
            await log.called(tries + 2)
            server.start()
            await log.holds(1_000 * (round_ + 1))
        assert (writer.dropped, writer.last_error) == (0, None)
        assert writer.spooled > 0
    assert sorted(ids(await everything(log._inner))) == ids(records(3_000))  # type: ignore[arg-type]
    await log.aclose()


WRITING = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[1])
from tests.records.samples import record, writer_to
from coe.records import open_log_and_feedback

async def main():
    folder = pathlib.Path(sys.argv[2])
    log = open_log_and_feedback("redis://127.0.0.1:1/0", base=folder)[0]  # no server listens there
    async with writer_to(log, spool=folder / "spool.db", batch=10, interval=0.001) as writer:
        number = 0
        while True:
            if writer.backlog < 1_000:
                writer.put(record(number))
                number += 1
            await asyncio.sleep(0)
            print(writer.spooled, flush=True)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_spooled_is_delivered_by_the_next_one(tmp_path: Path) -> None:
    spooled = written_until_killed(WRITING, tmp_path, at_least=500)
    waiting = ids(in_spool(tmp_path / "spool.db"))
    assert len(waiting) >= spooled
    log = open_log_and_feedback("sqlite:///log.db", base=tmp_path)[0]
    watched = WatchedLog(log)
    async with writer_to(watched, spool=tmp_path / "spool.db", **QUICK):
        await watched.holds(len(waiting))
    assert ids(await everything(log)) == waiting == ids(records(len(waiting)))
    await log.aclose()


def written_until_killed(code: str, folder: Path, *, at_least: int) -> int:
    """Run a process that writes without end, kill it in the middle, and return the last number that it printed."""
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        written = next((int(line) for line in process.stdout if int(line) >= at_least), 0)
        process.kill()
    assert written >= at_least
    return written
