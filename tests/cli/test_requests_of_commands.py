"""Requests of CoE's own commands are left out of reports and of learning, and counted beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from coe.cli import app
from coe.records.record import RoutingRecord
from coe.reports.report import report
from coe.settings import Settings
from tests.learning.test_report import logged, settings, traffic

__all__ = ["settings"]
DECLARED = """\
version: 1
categories: [{name: general, description: g}]
experts: [{name: own, model: folder, runtime: transformers}]
assignment: {general: own}
"""


def of_score(records: list[RoutingRecord]) -> list[RoutingRecord]:
    return [replace(one, request_id=f"score-{one.request_id}", purpose="score") for one in records]


def test_a_run_of_coe_score_changes_nothing_in_the_report_but_its_own_count_and_the_spend(settings: Settings) -> None:
    now = time.time()
    users = traffic(600, start=now - 3 * 86_400, expert="coder") + traffic(600, start=now - 7_200, expert="coder")
    logged(settings, users)
    before = report(settings, now=now)
    assert before["traffic"]["own"] == {}
    logged(settings, of_score(traffic(900, start=now - 3_000, expert="painter", uncertain_share=0.5)))
    logged(settings, of_score(traffic(10, start=now - 4 * 86_400, expert="painter", uncertain_share=0.5)))
    after = report(settings, now=now)
    assert after["traffic"].pop("own") == {"score": 900}
    before["traffic"].pop("own")
    spent = [one.pop("spend")["total"]["requests"] for one in (before, after)]
    assert (spent, after) == ([1_200, 2_110], before)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """Headers that the gateway received."""
    (tmp_path / "experts.yaml").write_text(DECLARED)
    (tmp_path / "probes.jsonl").write_text(
        '{"prompt": "p", "category": "general", "checker": "exact", "reference": "r"}'
    )
    monkeypatch.setenv("COE_API_KEY", "coe-secret")
    return []


async def run(seen: list[Mapping[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """Run a command against a server that stands for the gateway."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/health/live":
            return web.Response()
        seen.append({name.lower(): value for name, value in request.headers.items()})
        if not (await request.json())["stream"]:
            message = {"role": "assistant", "content": "hello"}
            return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "x-coe-expert": "own",
                "x-coe-category": "general",
                "x-coe-confidence": "1",
            }
        )
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n')
        await response.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    server = web.Application()
    server.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setenv("COE_PORT", str(runner.addresses[0][1]))
    arguments: list[Any] = [*words, "--config", folder / "experts.yaml"]
    try:
        result = await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in arguments])
    finally:
        await runner.cleanup()
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.anyio
async def test_coe_chat_and_coe_score_mark_their_requests_and_send_the_key(
    seen: list[Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hello" in await run(seen, tmp_path, monkeypatch, "chat", "hi")
    await run(seen, tmp_path, monkeypatch, "score", tmp_path / "probes.jsonl", "--out", tmp_path / "out")
    assert [one["x-coe-purpose"] for one in seen] == ["chat", "score"]
    assert [one["authorization"] for one in seen] == ["Bearer coe-secret"] * 2
