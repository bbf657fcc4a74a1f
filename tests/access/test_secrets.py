"""No key and no prompt is written anywhere: a real gateway whose expert repeats every request in its errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.access.samples import key_of
from tests.gateway.served import Served, serving

pytestmark = pytest.mark.anyio

KEY, UPSTREAM_KEY, PROMPT = "coe-canary-of-the-client", "sk-canary-of-the-expert", "canary-prompt-of-somebody"
MODELS = ("fine", "rejects", "fails", "breaks", "garbles")


async def _expert(request: web.Request) -> web.StreamResponse:
    """Repeats the whole request with its headers, in the way that the model name selects."""
    body = await request.json()
    echo = f"{dict(request.headers)} {body}"
    match body["model"]:
        case "fine":
            usage = {"prompt_tokens": 2, "completion_tokens": 4}
            return web.json_response({"choices": [{"message": {"content": "well"}}], "usage": usage})
        case "rejects":
            return web.json_response({"error": {"message": echo, "param": echo}}, status=400)
        case "garbles":
            return web.Response(text=echo, content_type="text/plain")
        case "breaks" if body["stream"]:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n')
            await response.write(b"data: " + orjson.dumps({"error": {"message": echo}}) + b"\n\n")
            return response
    return web.Response(text=echo, status=500, headers={"x-echo": UPSTREAM_KEY})


@asynccontextmanager
async def expert() -> AsyncIterator[str]:
    """The address of that expert."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _expert)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


async def send_chat(served: Served, path: str, key: str, **fields: Any) -> tuple[int, str, str]:
    """Status, headers and body of the answer."""
    body = {"messages": [{"role": "user", "content": PROMPT}], "model": "auto", **fields}
    headers = {"authorization": f"Bearer {key}", "x-session-id": "s1"}
    async with served.client.post(f"{served.url}{path}", json=body, headers=headers) as response:
        return response.status, str(response.headers), await response.text()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_neither_keys_nor_prompts_are_in_answers_logs_metrics_records_or_files(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 2 * len(MODELS) + 2, "tokens_per_minute": 100_000}
    keys = [
        key_of("client", secret=KEY, limits=limits, scopes=("chat", "route")).model_dump(),
        key_of("admin", secret="admin", scopes=("admin",)).model_dump(),
    ]
    for declared in keys:
        declared["scopes"] = sorted(declared["scopes"])
    answers = []
    log = tmp_path / "stderr"
    async with expert() as url:
        experts = [
            {"name": model, "model": model, "runtime": "external", "base_url": url, "api_key": "${CANARY}"}
            for model in MODELS
        ]
        changes = {"experts": experts, "assignment": {"general": "fine"}, "access": {"keys": keys}}
        environ = {"CANARY": UPSTREAM_KEY, "COE_ACCESS_LOG": "1"}
        with log.open("wb") as stderr:
            async with serving(tmp_path, environ=environ, stderr=stderr, **changes) as served:
                chat = "/v1/chat/completions"
                for stream in (False, True):
                    answers += [await send_chat(served, chat, KEY, model=model, stream=stream) for model in MODELS]
                answers.append(await send_chat(served, chat, KEY, model=f"{PROMPT}/{KEY}"))
                answers.append(await send_chat(served, "/v1/route", KEY))
                answers.append(await send_chat(served, chat, f"{KEY}-wrong"))
                answers.append(await send_chat(served, chat, "admin"))
                unrouted = 5  # the four above, and the one beyond the limit
                while answers[-1][0] != 429:
                    answers.append(await send_chat(served, chat, KEY))
                admin = {"authorization": "Bearer admin"}
                async with served.client.get(f"{served.url}/metrics", headers=admin) as response:
                    metrics = await response.text()
                records = await served.records(len(answers) - unrouted)

    assert {status for status, _, _ in answers} >= {200, 400, 401, 403, 404, 429, 502, 503}
    assert "rate_limit_exceeded" in metrics
    assert {record.key for record in records} == {"client"}
    assert "key=client" in log.read_text()
    bodies = "".join(body for _, _, body in answers)
    headers = "".join(headers for _, headers, _ in answers)
    assert UPSTREAM_KEY not in bodies
    written = files_of(tmp_path)
    assert len(written) > 2
    for canary in (KEY, UPSTREAM_KEY, PROMPT):
        assert canary not in headers
        assert canary not in metrics
        assert canary not in str(records)
        assert not [path for path, content in written.items() if canary.encode() in content]


async def test_a_request_cannot_choose_where_the_gateway_sends_it(tmp_path: Path) -> None:
    """Neither path, body, headers nor host select the address."""
    reached = asyncio.Event()

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    trap = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    target = f"http://127.0.0.1:{trap.sockets[0].getsockname()[1]}"
    names = ("base_url", "api_base", "api_key", "url", "endpoint", "custom_llm_provider", "extra_body")
    async with serving(tmp_path) as served:
        for model in ("auto", "good", target, f"openai/{target}"):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **dict.fromkeys(names, target)}
            headers = {"host": target.removeprefix("http://"), "x-forwarded-host": target, "x-base-url": target}
            async with served.client.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status in (200, 404)
        for path in ("/v1/sleep", "/sleep", "/wake_up", "/v1/load_lora_adapter", "/server_info", "/collective_rpc"):
            for method in ("GET", "POST"):
                async with served.client.request(method, served.url + path) as response:
                    assert response.status == 404
        for path in ("/v1/chat/completions/../../sleep", "//sleep", f"/{target}/v1"):
            assert (await _raw(served, path)).split()[1] in (b"404", b"405", b"400")
        assert set(served.upstream.pages) <= {"/metrics", "/health", "/v1/models"}
    assert not reached.is_set()
    trap.close()


async def _raw(served: Served, path: str) -> bytes:
    """The status line for a path that no client library would send as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line
