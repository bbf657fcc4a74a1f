"""The packaged model behind the real server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
import pytest

from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests import forked

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LONG = "Tell me a very long story about the sea."


def declared(name: str) -> ExpertSpec:
    return ExpertSpec(name=name, model="SmolLM2-135M-Instruct", runtime="transformers")


def send_chat(session: aiohttp.ClientSession, served: Endpoint, text: str, *, tokens: int, stream: bool):
    messages = [{"role": "user", "content": text}]
    body = {"model": served.model, "messages": messages, "max_tokens": tokens, "stream": stream, "temperature": 0}
    return session.post(f"{served.base_url}/chat/completions", json=body)


async def chunks(session: aiohttp.ClientSession, served: Endpoint, *, tokens: int) -> AsyncIterator[str]:
    async with send_chat(session, served, LONG, tokens=tokens, stream=True) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield orjson.loads(line[6:])["choices"][0]["delta"].get("content") or ""


async def sampled_text(session: aiohttp.ClientSession, served: Endpoint, *, temperature: float) -> str:
    body = {"model": served.model, "messages": [{"role": "user", "content": LONG}], "max_tokens": 8}
    async with session.post(
        f"{served.base_url}/chat/completions", json=body | {"temperature": temperature}
    ) as response:
        answer = await response.json()
    return str(answer["choices"][0]["message"]["content"])


async def until_idle(seconds: float) -> None:
    """Wait until the servers use next to no processor time."""
    async with asyncio.timeout(seconds):
        used, spent = 1.0, processor_time()
        while used > 0.1:
            await asyncio.sleep(1.0)
            used, spent = processor_time() - spent, processor_time()


def processor_time() -> float:
    return sum(sum(child.cpu_times()[:2]) for child in forked.children())


async def test_a_real_expert_answers_obeys_sampling_and_stops_a_closed_stream(
    tmp_path: Path, converted_models: Path
) -> None:
    lines: list[str] = []
    specs, endpoints = local_servers(
        [declared("small"), declared("again")],
        cache=converted_models,
        logs=tmp_path / "logs",
        python=Path(sys.executable),
        report=lines.append,
    )
    assert len(specs) == 1
    served = endpoints["again"]
    async with Fleet(specs, report=lines.append), aiohttp.ClientSession() as session:
        async with send_chat(session, served, "What is the capital of France?", tokens=24, stream=False) as response:
            answer = await response.json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] > 0

        certain = {await sampled_text(session, served, temperature=0) for _ in range(2)}
        varied = {await sampled_text(session, served, temperature=1.5) for _ in range(4)}
        assert len(certain) == 1
        assert len(varied | certain) > 2, "each request is sampled as it asks"

        stream = chunks(session, served, tokens=4000)  # minutes, when nobody stops it
        while not await anext(stream):
            pass
        await stream.aclose()
        await until_idle(20.0)
    assert forked.children() == []
    assert sum("is ready" in line for line in lines) == 1
