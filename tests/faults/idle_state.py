"""Resources of the gateway's workers while they are idle and connected to nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.faults.upstream_process import Upstream
from tests.gateway.served import Served
from tests.records.redis_server import RedisServer

GAUGES = ("coe_tasks", "coe_requests_arriving", "coe_requests_in_flight", "coe_queue_length", "coe_expert_in_flight")


async def idle_state(served: Served, upstreams: list[Upstream], redis: RedisServer) -> Counter[str]:
    """Returns what the workers hold while nothing is connected: GAUGES, and the number of descriptors by kind."""
    for upstream in upstreams:
        upstream.kill()
    seen: list[Counter[str]] = []
    while len(seen) < 10 or any(one != seen[-1] for one in seen[-10:]):
        await asyncio.sleep(0.1)
        now = descriptors(served, redis)
        for name in GAUGES:
            now[name] = round(await served.metric(name))
        seen.append(now)
    for upstream in upstreams:
        upstream.start()
    return seen[-1]


def descriptors(served: Served, redis: RedisServer) -> Counter[str]:
    """The number of descriptors by kind: `socket`, `pipe`, or the file's name. Without those of the routing log: a
    bounded pool of connections, and the spool, which is closed on an error and opened at the next need."""
    kinds = Counter[str]()
    for worker in served.workers:
        for link in Path(f"/proc/{worker.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                kinds[link.readlink().name.partition(":")[0]] += 1
        remotes = [connection.raddr for connection in worker.net_connections("tcp")]
        kinds["socket"] -= sum(bool(remote) and remote.port == redis.port for remote in remotes)
    return Counter({kind: count for kind, count in kinds.items() if not kind.startswith("spool")})
