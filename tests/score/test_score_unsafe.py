"""`coe score` with code probes where bubblewrap is missing: refused, unless the user passes --unsafe."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import forked
from tests.score.answering import AnsweringServer

pytestmark = pytest.mark.anyio

PROBE = {"prompt": "Write add.", "category": "code", "checker": "code", "tests": "assert add(2, 3) == 5"}


@pytest.fixture
async def server(anyio_backend: str, tmp_path: Path) -> AsyncIterator[AnsweringServer]:
    async with AnsweringServer({"m": lambda _: "```python\ndef add(a, b): return a + b\n```"}).running() as server:
        (tmp_path / "experts.yaml").write_text(
            "version: 1\ncategories: [{name: code, description: c}, {name: general, description: g}]\n"
            f"experts: [{{name: a, model: m, runtime: external, base_url: 'http://127.0.0.1:{server.port}/v1'}}]\n"
            "assignment: {general: a}\n"
        )
        (tmp_path / "probes.jsonl").write_text(json.dumps(PROBE))
        yield server


async def score(folder: Path, *options: str) -> tuple[int | None, str, str]:
    words = (
        "score",
        str(folder / "probes.jsonl"),
        "--out",
        str(folder / "out"),
        "--config",
        str(folder / "experts.yaml"),
    )
    process = await asyncio.create_subprocess_exec(
        *forked.python("coe.cli", *words, "--json", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": str(folder), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    output, complaints = await asyncio.wait_for(process.communicate(), 240)
    return process.returncode, output.decode(), complaints.decode()


async def test_code_is_refused_before_any_request_to_an_expert(server: AnsweringServer, tmp_path: Path) -> None:
    status, _, complaints = await score(tmp_path)
    assert status == 1
    assert "bubblewrap is not installed" in complaints
    assert "apt-get install bubblewrap" in complaints
    assert "--unsafe" in complaints
    assert server.bodies == []


async def test_unsafe_runs_the_code_and_warns(server: AnsweringServer, tmp_path: Path) -> None:
    status, output, complaints = await score(tmp_path, "--unsafe")
    assert "warning: code of experts runs without bubblewrap (--unsafe): nothing but limits on time" in complaints
    assert (status, json.loads(output)["experts"]["a"]["mean"]) == (0, 1.0)
