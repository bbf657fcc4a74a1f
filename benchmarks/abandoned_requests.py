"""Measures how long a one-token request waits at the embedded expert after abandoned non-streaming requests.

Sent to `transformers serve` as they are, and through CoE's expert, which requests streams.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from coe.core import Call
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.registry import ExpertSpec
from coe.settings import Endpoint

LEFT_AFTER = 1.0
"""Seconds after which the clients leave."""
TIMEOUT = 600.0


def chat(tokens: int) -> dict[str, Any]:
    question = [{"role": "user", "content": "Tell me a very long story about the sea."}]
    return {"messages": question, "max_tokens": tokens, "temperature": 0}


async def wait_after_abandoned(ask: Callable[[int], Awaitable[Any]], *, count: int, tokens: int) -> float:
    """Seconds until a one-token request is answered, after `count` of `tokens` tokens were abandoned."""
    await ask(1)
    left = [asyncio.ensure_future(ask(tokens)) for _ in range(count)]
    await asyncio.sleep(LEFT_AFTER)
    for one in left:
        one.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    began = time.monotonic()
    await ask(1)
    return time.monotonic() - began


async def measure(cache: Path, *, count: int, tokens: int) -> None:
    spec = ExpertSpec(name="small", model="SmolLM2-135M-Instruct", runtime="transformers")
    servers, endpoints = local_servers([spec], cache=cache, logs=cache / "logs", python=Path(sys.executable))
    served: Endpoint = endpoints["small"]
    async with Fleet(servers, report=print), aiohttp.ClientSession() as session, Client() as client:
        expert = HttpExpert(spec, served, session=client)

        async def through_expert(tokens: int) -> None:
            reply = await expert.stream(Call(chat(tokens), False, TIMEOUT, TIMEOUT))
            await reply.aclose()

        async def direct(tokens: int) -> None:
            body = {"model": served.model, **chat(tokens)}
            async with session.post(f"{served.base_url}/chat/completions", json=body) as response:
                await response.read()

        for name, ask in (("through CoE", through_expert), ("direct", direct)):
            seconds = await wait_after_abandoned(ask, count=count, tokens=tokens)
            print(f"{name}: {seconds:.1f} s after {count} abandoned requests of {tokens} tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder of the converted model")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        asyncio.run(measure(chosen.cache or Path(folder), count=chosen.count, tokens=chosen.tokens))
