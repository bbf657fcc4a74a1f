"""Operations that pass through: rerank, score, tokenize, moderations, audio and images, over real expert servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.experts import build_experts
from coe.experts.http.client import Client
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio

MP3 = bytes(range(256)) * 300
FILE = b"--b-1\r\nnot a boundary\r\n--b"
FORM = (
    b'--b-1x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--b-1x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    + FILE.replace(b"%", b"%%")
    + b'\r\n--b-1x\r\nContent-Disposition: form-data; name="language"\r\n\r\nde\r\n--b-1x--\r\n'
)
MULTIPART = {"content-type": "multipart/form-data; boundary=b-1x"}
SCORES = {"model": "m", "results": [{"index": 0, "relevance_score": 0.5}], "usage": {"prompt_tokens": 7}}


class Server:
    """An expert server that records its requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.path, request.headers["content-type"], body))
        if b"fail once" in body and len(self.seen) == 1:
            return web.json_response({"error": "out of memory"}, status=500)
        if request.path.endswith("speech"):
            response = web.StreamResponse(headers={"content-type": "audio/mpeg"})
            await response.prepare(request)
            await response.write(MP3[:100])
            if b"break off" in body:
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(MP3[100:])
            return response
        if b"refuse" in body:
            return web.json_response({"error": {"message": "no such voice", "code": "bad_voice"}}, status=400)
        if b"text please" in body:
            return web.Response(text="words, not JSON")
        return web.json_response(SCORES)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[str]:
    """The URL of the started server."""
    app = web.Application()
    app.router.add_post("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def experts_at(url: str, *apis: str) -> list[dict[str, Any]]:
    at = {"model": "m", "runtime": "external", "base_url": url}
    special = [{"name": name, "apis": apis, "prices": {"input": 1000}, **at} for name in ("special", "other")]
    return [{"name": "generalist", **at}, *special]


@asynccontextmanager
async def gateway_with(*apis: str, twice: bool = False, **changes: Any) -> AsyncIterator[tuple[Gateway, Server]]:
    """A gateway with a chat expert, and an expert `special` for these APIs, or two."""
    async with running(server := Server()) as url:
        registry = registry_of(
            experts=experts_at(url, *apis)[: 2 + twice], assignment={"general": "generalist"}, **changes
        )
        async with (
            Client() as session,
            gateway_of(registry, real_experts=build_experts(registry, {}, session=session)) as gateway,
        ):
            yield gateway, server


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/rerank", {}),
        ("/rerank", {"model": None}),
        ("/v2/rerank", {"model": "auto"}),
        ("/v1/rerank", {"model": "special"}),
    ],
)
async def test_json_passes_with_the_servers_model_name_and_is_recorded(path: str, model: dict[str, str]) -> None:
    async with gateway_with("rerank") as (gateway, server):
        response = await gateway.post(path, orjson.dumps({"query": "a", "documents": ["b", "c"], **model}))
    assert response.json == {**SCORES, "model": "special"}
    assert response.headers["x-coe-expert"] == "special"
    assert response.headers["x-coe-category"] == "general"
    ((at, kind, body),) = server.seen
    assert (at, kind) == ("/v1/rerank", "application/json")
    assert orjson.loads(body) == {"query": "a", "documents": ["b", "c"], "model": "m"}
    (record,) = gateway.records
    assert (record.api, record.outcome, record.expert, record.input_tokens) == ("rerank", "ok", "special", 7)
    assert record.cost == pytest.approx(0.007)
    assert record.probabilities == {}
    assert record.reason == ("pinned" if model.get("model") == "special" else "routed")


def rewritten(form: bytes, kind: str, model: bytes = b"m") -> bytes:
    """FORM as the server of media type `kind` gets it: with a boundary of the gateway's, and the model first."""
    media_type, _, boundary = kind.partition("; boundary=")
    assert media_type == "multipart/form-data"
    assert len(boundary) == 32
    declared = b'Content-Disposition: form-data; name="model"\r\n\r\n'
    others = form.replace(b"--b-1x\r\n" + declared + b"special\r\n", b"")
    return (b"--b-1x\r\n" + declared + model + b"\r\n" + others).replace(b"--b-1x", b"--" + boundary.encode())


async def test_a_form_passes_with_its_fields_and_files_but_for_the_name_of_its_model() -> None:
    async with gateway_with("audio/transcriptions") as (gateway, server):
        response = await gateway.post("/v1/audio/transcriptions", FORM % b"special", headers=MULTIPART)
        assert response.status == 200
    ((path, kind, body),) = server.seen
    assert path == "/v1/audio/transcriptions"
    assert body == rewritten(FORM % b"special", kind)
    assert gateway.records[0].model == "special"


async def test_a_large_form_that_arrives_in_pieces_passes_too() -> None:
    form = (FORM % b"special").replace(FILE, FILE + MP3 * 3)
    async with gateway_with("audio/transcriptions") as (gateway, server):
        pieces = [form[at : at + 50_000] for at in range(0, len(form), 50_000)]
        assert (await gateway.post("/v1/audio/transcriptions", *pieces, headers=MULTIPART)).status == 200
        assert gateway.services.admission.body_memory == 0
    assert server.seen[0][2] == rewritten(form, server.seen[0][1])


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (b"--", "does not begin with a boundary"),
        (b"--b\r\n\r\n", "last part does not end"),
        (b"--b\r\nx\r\n--b--", "no end of its headers"),
        (b"--b\r\nx: y\r\n\r\n\r\n--b--", "not declared as form-data"),
        (FORM.replace(b"language", b"model") % b"special", "model twice"),
        (FORM.replace(b"--b\r\n--b-1x\r\n", b"--b\r\n--b-1xy\r\n") % b"special", "part of its content"),
        (b"--\xff--", "does not begin with a boundary"),
        (b"--b\r\n" + b'content-disposition: form-data; name="a"\r\n\r\n\r\n--b\r\n' * 300, "more than 256 parts"),
        (FORM % b"\xff", "can't decode byte"),
    ],
)
async def test_a_broken_form_is_refused_with_the_reason(form: bytes, reason: str) -> None:
    async with gateway_with("audio/transcriptions") as (gateway, server):
        response = await gateway.post("/v1/audio/transcriptions", form, headers=MULTIPART)
    assert (response.status, response.error["code"]) == (400, "invalid_form")
    assert reason in response.error["message"]
    assert not server.seen


async def test_forms_are_bounded_and_refused_elsewhere() -> None:
    async with gateway_with("audio/transcriptions", "rerank", limits={"max_body_mb": 0.1}) as (gateway, server):
        large = FORM % b"special" + MP3 * 2
        assert (await gateway.post("/v1/audio/transcriptions", large, headers=MULTIPART)).status == 413
        assert (await gateway.post("/v1/rerank", FORM % b"special", headers=MULTIPART)).status == 415
        assert (await gateway.post("/v1/chat/completions", FORM % b"special", headers=MULTIPART)).status == 415
    assert not server.seen


async def test_a_binary_answer_is_relayed() -> None:
    async with gateway_with("audio/speech") as (gateway, _):
        response = await gateway.post("/v1/audio/speech", b'{"model": "special", "input": "Hi", "voice": "v"}')
    assert response.headers["content-type"] == "audio/mpeg"
    assert response.body == MP3
    assert gateway.records[0].outcome == "ok"


async def test_a_binary_answer_that_breaks_off_gets_no_second_head() -> None:
    async with gateway_with("audio/speech") as (gateway, _):
        response = await gateway.post("/v1/audio/speech", b'{"model": "special", "input": "break off"}')
    assert response.headers["content-type"] == "audio/mpeg"
    assert MP3.startswith(response.body)
    assert gateway.records[0].cause == "connection_lost"


async def test_a_refusal_of_the_server_keeps_status_and_code() -> None:
    async with gateway_with("moderations") as (gateway, _):
        response = await gateway.post("/v1/moderations", b'{"input": "refuse"}')
    assert (response.status, response.error["code"]) == (400, "bad_voice")


async def test_an_expert_that_does_not_declare_the_api_is_not_called() -> None:
    async with gateway_with("rerank") as (gateway, server):
        routed = await gateway.post("/v1/score", b'{"text_1": "a", "text_2": "b"}')
        pinned = await gateway.post("/v1/rerank", b'{"model": "generalist"}')
    assert (routed.status, pinned.status) == (400, 400)
    assert "apis: [score]" in routed.error["message"]
    assert "generalist does not support the rerank API" in pinned.error["message"]
    assert not server.seen
