"""Sends many requests while everything around the gateway fails at random: `python -m tests.faults.schedule --requests
10000`.

Servers of experts misbehave (upstream.py), are killed and restarted, freeze and go on; Redis is killed and restarted;
for a while no file can grow, as on a full disk; clients leave. What must hold in the end:

- every request has an answer: an error in OpenAI's shape, whole JSON, or a stream that ends with [DONE] or an error;
- the log has exactly one record of every request;
- the gateway holds as many tasks, permits, places at experts and descriptors as before.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import aiohttp
import orjson

from tests.faults.idle_state import idle_state
from tests.faults.upstream_process import Upstream
from tests.gateway.served import Served, chat, serving
from tests.records.redis_server import RedisServer

CLIENTS = 100
LEAVING = 0.02
"""Share of the clients that leave before their answer is there."""
PACE = 0.3
"""Seconds between two events of the schedule."""
SETTLE_TIMEOUT = 70.0
"""Seconds within which the log must have every record after the last fault."""
SILENCE = {"first_token_timeout": 0.5, "response_timeout": 0.5, "stream_idle_timeout": 0.5}
"""Declared stream idle timeout of the experts, in seconds."""
ADDRESSES = {"coder": 2, "painter": 1, "generalist": 2}
"""Experts and their numbers of replicas."""


@dataclass
class Report:
    """The outcomes of the requests."""

    seed: int
    answered: dict[str, str] = field(default_factory=dict)
    """Outcome by request id, as the client saw it."""
    routed: set[str] = field(default_factory=set)
    """Ids of answered requests that were routed, and so have a record."""
    left: int = 0
    events: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    settled: float = 0.0
    """Seconds until the last record was in the log."""

    def __str__(self) -> str:
        outcomes = Counter(self.answered.values())
        return (
            f"seed {self.seed}: {len(self.answered)} answered {dict(outcomes)}, {self.left} left, "
            f"events {dict(self.events)}, {self.seconds:.1f} s and {self.settled:.1f} s for the log\n"
            + "\n".join(self.problems)
        )


class Schedule:
    """Inject the faults outside of answers, one after the other; each ends before the next begins."""

    def __init__(self, served: Served, upstreams: list[Upstream], redis: RedisServer, report: Report) -> None:
        self._served, self._upstreams, self._redis, self._report = served, upstreams, redis, report
        self._rng = random.Random(report.seed)

    async def run(self, over: Callable[[], bool]) -> None:
        events = (self._kill, self._freeze, self._lose_redis, self._fill_disk, self._leave_alone)
        while not over():
            event = self._rng.choices(events, (4, 3, 1, 1, 3))[0]
            self._report.events[event.__name__] += 1
            await event(self._rng.uniform(0.3, 1) * PACE)

    async def _kill(self, seconds: float) -> None:
        upstream = self._rng.choice(self._upstreams)
        upstream.kill()
        await asyncio.sleep(seconds)
        upstream.start()

    async def _freeze(self, seconds: float) -> None:
        upstream = self._rng.choice(self._upstreams)
        upstream.signal(SIGSTOP)
        await asyncio.sleep(seconds)
        upstream.signal(SIGCONT)

    async def _lose_redis(self, seconds: float) -> None:
        self._redis.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._redis.start)

    async def _fill_disk(self, seconds: float) -> None:
        """No file of the gateway can grow, and the log is away too."""
        for worker in self._served.workers:
            worker.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        await self._lose_redis(seconds)
        for worker in self._served.workers:
            worker.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async def _leave_alone(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Clients:
    """CLIENTS at a time, each with its next request as soon as it has an answer."""

    def __init__(self, served: Served, report: Report, requests: int) -> None:
        self._served, self._report = served, report
        self._rng = random.Random(report.seed + 1)
        self._todo = requests

    @property
    def done(self) -> bool:
        return self._todo <= 0

    async def run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._client(session) for _ in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self.done:
            self._todo -= 1
            rng = self._rng
            body = chat(
                rng.choice(("auto", "auto", *ADDRESSES)),
                stream=rng.random() < 0.5,
                text=rng.choice(("code", "art", "hello", "ponder code")),
            )
            if rng.random() < LEAVING:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._send_chat(session, body), rng.uniform(0.001, 0.02))
                    continue
                self._report.left += 1
            else:
                await self._send_chat(session, body)

    async def _send_chat(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        try:
            async with session.post(f"{self._served.url}/v1/chat/completions", json=body) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            self._report.problems.append(f"no answer: {error!r}")
            return
        request_id = response.headers["x-request-id"]
        if request_id in self._report.answered:
            self._report.problems.append(f"{request_id} twice")
        self._report.answered[request_id] = outcome = outcome_of(response.status, answer, stream=body["stream"])
        if "x-coe-expert" in response.headers:
            self._report.routed.add(request_id)
        if outcome in ("", "internal_error"):
            self._report.problems.append(f"{request_id}: HTTP {response.status} {answer[-300:]!r}")


def outcome_of(status: int, answer: bytes, *, stream: bool) -> str:
    """Return `ok` or the error code; empty for an invalid answer."""
    try:
        if status == 200 and stream:
            last = [event for event in answer.split(b"\n\n") if event][-1]
            if last == b"data: [DONE]":
                return "ok"
            return str(orjson.loads(last.removeprefix(b"data: "))["error"]["code"])
        reported = orjson.loads(answer)
        return "ok" if status == 200 and "choices" in reported else str(reported["error"]["code"])
    except (ValueError, LookupError):
        return ""


@asynccontextmanager
async def surroundings(folder: Path, seed: int) -> AsyncIterator[tuple[Served, list[Upstream], RedisServer]]:
    """The gateway with two workers, its experts' servers and its log."""
    redis = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    upstreams: list[Upstream] = []
    experts = []
    try:
        for name, replicas in ADDRESSES.items():
            own = [Upstream(seed + len(upstreams) + number) for number in range(replicas)]
            upstreams += own
            urls = [f"http://127.0.0.1:{upstream.port}/v1" for upstream in own]
            experts.append({"name": name, "model": "m", "runtime": "external", "base_urls": urls})
        async with serving(
            folder,
            environ={"COE_WORKERS": "2"},
            experts=experts,
            assignment={"code": "coder", "art": "painter", "general": "generalist"},
            policy={"max_attempts": 3, "timeout": 10, **SILENCE},
            limits={"concurrent_requests": 40, "queue_timeout": 2},
            log={"url": redis.url},
        ) as served:
            yield served, upstreams, redis
    finally:
        for upstream in upstreams:
            upstream.kill()
        redis.kill()


async def recovered(served: Served) -> None:
    """Until every expert answers most requests again."""
    async with asyncio.timeout(SETTLE_TIMEOUT):
        for name in ADDRESSES:
            good = 0
            while good < 10:
                async with served.send_chat(name) as response:
                    good = good + 1 if response.status == 200 else 0


async def run(requests: int, seed: int) -> Report:
    """Run the schedule; the report's `problems` are empty when everything held."""
    report = Report(seed)
    with tempfile.TemporaryDirectory(prefix="coe-") as folder:
        async with surroundings(Path(folder), seed) as (served, upstreams, redis):
            await Clients(served, Report(seed), 2 * CLIENTS).run()  # what is opened once is open from here on
            before = await idle_state(served, upstreams, redis)
            await recovered(served)
            since = time.time()
            clients = Clients(served, report, requests)
            schedule = asyncio.create_task(Schedule(served, upstreams, redis, report).run(lambda: clients.done))
            began = time.perf_counter()
            await clients.run()
            await schedule
            report.seconds = time.perf_counter() - began
            await check_records(served, report, since)
            if 3 * Counter(report.answered.values())["ok"] < requests:
                report.problems.append("less than a third of the requests went well: this tests too little")
            if left := await idle_state(served, upstreams, redis) - before:
                report.problems.append(f"held when all was over: {dict(left)}")
    return report


async def check_records(served: Served, report: Report, since: float) -> None:
    """One for every routed request, of the outcome its client saw, and at most one more for every client that left."""
    expected = report.routed
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        records = [record for record in await served.records(0) if record.time >= since]
        if expected <= {record.request_id for record in records} or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    report.settled = SETTLE_TIMEOUT - (deadline - time.monotonic())
    counts = Counter(record.request_id for record in records)
    report.problems += [f"{lost}: no record" for lost in expected - counts.keys()]
    report.problems += [f"{twice}: {count} records" for twice, count in counts.items() if count > 1]
    if len(counts) > len(expected) + report.left:
        report.problems.append(f"{len(counts)} records of {len(expected)} answers and {report.left} clients that left")
    for record in records:
        seen = report.answered.get(record.request_id, record.outcome)
        if seen and seen != record.outcome:
            report.problems.append(f"{record.request_id}: the client saw {seen}, the record says {record.outcome}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    report = asyncio.run(run(arguments.requests, arguments.seed))
    sys.stdout.write(f"{report}\n")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
