"""A constant load: RATE requests per second over 50 connections until stopped. Arguments: port RATE EXPERTS.

Half are routed, half pin one of the experts in the file EXPERTS (one name a line), so that every category meets every
expert. Prints `failed` with a count at the end if any did.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from random import Random

import orjson
import uvloop

from benchmarks.harness import STARTER, head

CONNECTIONS = 50


async def one(port: int, gap: float, bodies: list[bytes], start: float) -> int:
    """Send requests over one connection, one every `gap` seconds or as soon as the previous one is done."""
    loop, failed = asyncio.get_running_loop(), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = loop.time() + start
    try:
        for body in bodies:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += gap
            writer.write(head(len(body)) + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            failed += not answer.startswith(b"http/1.1 200")
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    except asyncio.CancelledError:
        pass
    writer.close()
    return failed


def request_bodies(experts: list[str]) -> list[bytes]:
    random = Random(0)
    texts = [json.loads(line)["prompt"] for line in STARTER.read_text(encoding="utf-8").splitlines() if line]
    models = ["auto"] * len(experts) + experts
    return [
        orjson.dumps({"model": random.choice(models), "messages": [{"role": "user", "content": random.choice(texts)}]})
        for _ in range(20_000)
    ]


async def main(port: int, rate: float, experts: list[str]) -> None:
    bodies, gap = request_bodies(experts) * 5, CONNECTIONS / rate
    tasks = [
        asyncio.create_task(one(port, gap, bodies[index::CONNECTIONS], index / rate)) for index in range(CONNECTIONS)
    ]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
    if failed := sum(await asyncio.gather(*tasks)):
        print(f"failed {failed}", file=sys.stderr)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]).read_text().split()))
