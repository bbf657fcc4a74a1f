"""The packaged model behind the real server."""

from __future__ import annotations

import sys
from pathlib import Path

import aiohttp
import pytest

from coe.fleet.engines import local_servers
from coe.fleet.server import Fleet
from coe.registry import ExpertSpec
from tests import forked

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_two_experts_of_the_packaged_model_share_a_server_that_answers_streams_and_ends(
    tmp_path: Path, converted_models: Path
) -> None:
    lines: list[str] = []
    declared = [
        ExpertSpec(name=name, model="SmolLM2-135M-Instruct", runtime="transformers") for name in ("small", "again")
    ]
    specs, endpoints = local_servers(
        declared, cache=converted_models, logs=tmp_path / "logs", python=Path(sys.executable), report=lines.append
    )
    assert len(specs) == 1
    served = endpoints["again"]
    url = f"{served.base_url}/chat/completions"
    asked = {"role": "user", "content": "What is the capital of France?"}
    body = {"model": served.model, "messages": [asked], "max_tokens": 16, "temperature": 0}
    async with Fleet(specs, report=lines.append), aiohttp.ClientSession() as session:
        async with session.post(url, json=body) as response:
            answer = await response.json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] > 0
        async with session.post(url, json=body | {"stream": True, "max_tokens": 2}) as response:
            assert b'"delta"' in await response.read()
    assert forked.children() == []
    assert sum("is ready" in line for line in lines) == 1
