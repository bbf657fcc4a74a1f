"""One job runs at a time: real processes, one of which is killed, and a lost lock."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest
from redis import Redis

from coe.errors import JobError
from coe.learning.round import LOCK_KEY, job_lock

SOON = 60.0
"""Time limit of every wait, in seconds."""
LEASE = 60.0
HOLDING = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from coe.learning.round import job_lock
with job_lock(sys.argv[2], home=pathlib.Path(sys.argv[3]), lease=float(sys.argv[4])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, redis_url: str) -> str:
    return redis_url if request.param == "redis" else "sqlite:///log.db"


@contextmanager
def another_process(url: str, home: Path, *, lease: float = LEASE) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLDING, str(Path(__file__).parents[2]), url, str(home), str(lease)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_job_that_holds_the_lock_is_named_and_the_next_one_begins_when_it_ends(url: str, tmp_path: Path) -> None:
    with another_process(url, tmp_path) as other:
        with (
            pytest.raises(JobError, match=rf"another job is running \(process {other.pid} on "),
            job_lock(url, home=tmp_path),
        ):
            pytest.fail("two at once")
        other.communicate("")
        assert other.returncode == 0
    with job_lock(url, home=tmp_path) as assure:
        assure()


def test_a_job_that_may_wait_says_so_and_begins_when_the_other_one_ends(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with another_process(url, tmp_path) as other:
        Timer(0.5, other.stdin.close).start()  # type: ignore[union-attr]
        with job_lock(url, home=tmp_path, wait=SOON) as assure:
            assure()
    assert f"another job is running (process {other.pid} on " in capsys.readouterr().err


def test_the_lock_of_a_killed_job_is_free_when_its_lease_expires(url: str, tmp_path: Path) -> None:
    with another_process(url, tmp_path, lease=0.3) as other:
        other.kill()
        other.wait()
    given_up = time.monotonic() + SOON
    while True:
        try:
            with job_lock(url, home=tmp_path):
                return
        except JobError:
            assert time.monotonic() < given_up
            time.sleep(0.02)


def test_a_lease_is_extended_while_the_job_runs(redis_url: str, tmp_path: Path) -> None:
    with Redis.from_url(redis_url) as client, job_lock(redis_url, home=tmp_path, lease=3.0):
        given_up, left = time.monotonic() + SOON, client.pttl(LOCK_KEY)
        while (now := client.pttl(LOCK_KEY)) <= left:  # type: ignore[operator]
            left = now
            assert time.monotonic() < given_up
            time.sleep(0.01)


def test_a_job_that_has_lost_its_lock_promotes_nothing_and_leaves_the_next_ones_alone(
    redis_url: str, tmp_path: Path
) -> None:
    with Redis.from_url(redis_url) as client:
        with job_lock(redis_url, home=tmp_path) as assure:
            client.set(LOCK_KEY, "somebody else's")
            with pytest.raises(JobError, match=r"the lock was lost .*; nothing is promoted, run it again"):
                assure()
        assert client.get(LOCK_KEY) == b"somebody else's"
        client.delete(LOCK_KEY)
