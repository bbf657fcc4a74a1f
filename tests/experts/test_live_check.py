"""The live check: a few tokens from each server, and a cause with a remedy for each failure."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from typer.testing import CliRunner

from coe.cli import app
from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.experts.live_check import MAX_ANSWER_TOKENS, Finding, check_experts
from coe.registry import Registry
from tests.experts.fault_servers import (
    COMPLETION,
    answering,
    closed_port,
    self_signed,
    server,
    serving,
)
from tests.fakes import registry_of

KEY = "sk-very-secret-4711"
SERVED = ("qwen2.5-7b-instruct", "llama-3-8b", "mistral-7b")


def registry_at(base_url: str | None, **spec: Any) -> Registry:
    declared = {"name": "coder", "model": SERVED[0], "runtime": "external", "base_url": base_url, "api_key": KEY}
    return registry_of(experts=[declared | spec], assignment={"general": "coder"})


async def found(base_url: str, **spec: Any) -> Finding:
    registry = registry_at(base_url, **spec)
    async with Client() as session:
        experts = build_experts(registry, {}, session=session)
        (finding,) = await check_experts(experts.values(), session=session)
        assert experts["coder"].replicas[0].breaker.state == "closed"
        assert not experts["coder"].incidents.active  # a check is no traffic
    assert KEY not in finding.sentence
    return finding


@pytest.mark.anyio
async def test_an_answering_expert_passes_and_receives_a_request_for_a_few_tokens() -> None:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(await request.json())
        return web.json_response(COMPLETION)

    async with server(answer) as root:
        finding = await found(f"{root}/v1", parameters={"max_tokens": 500})
    assert finding.ok
    assert "answers at" in finding.sentence
    assert [body["max_tokens"] for body in seen] == [MAX_ANSWER_TOKENS]


@pytest.mark.anyio
async def test_a_failure_is_reported_with_its_cause_and_remedy(tmp_path: Path) -> None:
    async with server(serving(*SERVED, key=KEY)) as root:
        finding = await found(f"{root}/v1", model="qwen-2.5-7b-instruct")
    assert finding.cause == "model_not_found"
    assert "/v1/models" in finding.remedy
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*self_signed(tmp_path))
    async with server(answering, tls=tls) as root:
        untrusted = await found(f"{root}/v1")
    assert untrusted.cause == "tls_error"
    assert "certificate" in untrusted.problem


@pytest.mark.anyio
async def test_every_replica_is_checked_and_credentials_in_urls_stay_secret() -> None:
    async with server(serving(*SERVED, key=KEY)) as root:
        urls = [f"{root}/v1", f"{root.replace('//', '//user:hunter2@')}/wrong"]
        registry = registry_at(None, base_urls=urls)
        async with Client() as session:
            experts = build_experts(registry, {}, session=session)
            good, bad = await check_experts(experts.values(), session=session)
    assert (good.ok, bad.ok) == (True, False)
    assert "hunter2" not in bad.sentence


def test_coe_check_live_exits_with_1_and_names_the_expert(tmp_path: Path) -> None:
    at = {"runtime": "external", "model": "m", "base_url": f"{closed_port()}/v1"}
    categories = [{"name": name, "description": name} for name in ("code", "general")]
    declared = registry_of(categories=categories, experts=[{"name": "coder", **at}], assignment={"general": "coder"})
    file = tmp_path / "experts.yaml"
    file.write_bytes(orjson.dumps(declared.model_dump(mode="json", exclude_none=True)))
    runner = CliRunner()
    assert runner.invoke(app, ["check", "--config", str(file)]).exit_code == 0
    text = runner.invoke(app, ["check", "--live", "--config", str(file)])
    assert text.exit_code == 1
    assert "expert coder at 127.0.0.1:" in text.output
    assert "nothing listens at its address" in text.output
    reported = runner.invoke(app, ["check", "--live", "--json", "--config", str(file)])
    assert reported.exit_code == 1
    live = orjson.loads(reported.output)
    assert (live["ok"], live["live"][0]["cause"]) == (False, "connection_refused")
