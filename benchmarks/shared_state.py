"""Latency of sharing conversations and artifacts between gateways through Redis.

    python -m benchmarks.shared_state --redis redis://127.0.0.1:6379/15 --json FILE [--conversations 6400] [--megabytes
    20]

Parts of two gateways in one process over one Redis, whose database is emptied: one writes conversations, the other
reads them, one at a time and 32 at once; one promotes a version, the other mirrors it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from redis import Redis

from coe.artifacts.redis import RedisArtifacts
from coe.artifacts.store import ArtifactStore, mirror
from coe.routing.conversation import Affinity, Conversation
from gateway.access import open_affinity

AT_ONCE = 32


async def conversations(url: str, count: int) -> dict[str, Any]:
    """Microseconds to publish an entry, milliseconds until the other gateway has it, and how many entries arrived."""
    keys = [secrets.token_bytes(16) for _ in range(count)]
    async with open_affinity(url) as one, open_affinity(url) as other:
        began = time.perf_counter()
        for place, key in enumerate(keys):
            one.put(Conversation((key,)), "coder")
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
        published = (time.perf_counter() - began) / count * 1e6
        await asyncio.sleep(1)  # until all entries are in Redis
        alone = await looked_up(other, keys, at_once=1)
        return {
            "publish_us": published,
            "one_at_a_time": alone,
            f"{AT_ONCE}_at_once": await looked_up(other, keys, at_once=AT_ONCE),
        }


async def looked_up(affinity: Affinity, keys: Sequence[bytes], *, at_once: int) -> dict[str, float]:
    """Milliseconds of a lookup, the share of known keys, and processor time of one lookup."""

    async def lookup(key: bytes) -> tuple[float, bool]:
        began = time.perf_counter()
        known = await affinity.find(Conversation((), (key,))) is not None
        return (time.perf_counter() - began) * 1e3, known

    answers = list[tuple[float, bool]]()
    busy = time.process_time()
    for start in range(0, len(keys), at_once):
        answers += await asyncio.gather(*map(lookup, keys[start : start + at_once]))
    busy = time.process_time() - busy
    p50, p99 = np.percentile([wait for wait, _ in answers], [50, 99])
    share = sum(known for _, known in answers) / len(answers)
    return {"p50_ms": float(p50), "p99_ms": float(p99), "known": share, "cpu_us": busy / len(keys) * 1e6}


def artifacts(url: str, megabytes: int) -> dict[str, float]:
    """Seconds to promote a version of that size, to copy it, and to check when nothing is new."""
    with TemporaryDirectory() as folder:
        share = RedisArtifacts(url)
        here, there = (ArtifactStore(Path(folder) / name, "router", share) for name in "ab")
        with here.draft() as draft:
            (draft / "weights.bin").write_bytes(os.urandom(megabytes * 2**20))
            version = here.publish(draft, categories=["a"], data="d", metrics={}).manifest.version
        times = [time.perf_counter()]
        for step in (lambda: here.promote(version), lambda: mirror([there]), lambda: mirror([there])):
            step()
            times.append(time.perf_counter())
        share.close()
    return dict(zip(("promote_s", "mirror_s", "check_s"), np.diff(times).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, metavar="URL", help="emptied")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE")
    parser.add_argument("--conversations", type=int, default=6400)
    parser.add_argument("--megabytes", type=int, default=20)
    options = parser.parse_args()
    with Redis.from_url(options.redis) as client:
        client.flushdb()
    report = {
        "conversations": asyncio.run(conversations(options.redis, options.conversations)),
        "artifacts": artifacts(options.redis, options.megabytes),
    }
    options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    print(options.json.read_text())


if __name__ == "__main__":
    main()
