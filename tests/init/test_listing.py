"""Lists of models from real sockets: the forms of different servers, and servers that answer with something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.cli.init import listing as listing_module
from coe.cli.init.listing import ListedModel, Listing, list_models, read_models
from coe.cli.init.sources import Source, endpoint
from tests.experts.fault_servers import Answer, closed_port, hanging_up, refusing, server, servers, silent
from tests.init import model_lists
from tests.init.model_lists import listing

KEY = "sk-very-secret-4711"


def source_at(root: str, **changes: Any) -> Source:
    return replace(endpoint(root), **changes)


async def listed(answer: Answer, **changes: Any) -> Listing:
    async with server(answer) as root:
        (found,) = await list_models([source_at(root, **changes)], {"KEY": KEY})
    assert KEY not in repr(found)
    return found


@pytest.mark.anyio
async def test_servers_of_each_kind_are_listed_at_the_same_time() -> None:
    kinds = (model_lists.OLLAMA, model_lists.VLLM, model_lists.LLAMA_CPP, model_lists.LM_STUDIO, model_lists.OPENROUTER)
    async with servers([listing(models) for models in kinds]) as roots:
        found = await list_models([source_at(root) for root in roots], {})
    assert [[model.id for model in one.models] for one in found] == [
        ["llama3.2:3b", "nomic-embed-text:latest"],
        ["Qwen/Qwen2.5-Coder-7B-Instruct"],
        ["/models/gemma-3-4b-it-Q4_K_M.gguf"],
        ["qwen3-30b-a3b", "text-embedding-nomic-embed-text-v1.5"],
        ["qwen/qwen3-8b", "openrouter/auto"],
    ]
    assert [one.models[0].context_length for one in found] == [None, 32768, 16384, None, 40960]
    assert found[4].models[0].prices == pytest.approx((0.035, 0.138))
    assert found[4].models[1].prices is None  # -1 stands for "depends"
    assert all(one.base_url.endswith("/v1") for one in found)


@pytest.mark.anyio
async def test_the_key_goes_into_the_header_and_a_refused_key_names_its_variable() -> None:
    assert (await listed(listing(model_lists.VLLM, key=KEY), key_env="KEY")).models
    refused = await listed(listing(model_lists.VLLM, key=KEY), key_env="OTHER")
    assert (refused.cause, refused.remedy) == ("unauthorized", "set OTHER to a valid key")
    without = await listed(listing(model_lists.VLLM, key=KEY))
    assert "--key-env VARIABLE" in without.remedy


@pytest.mark.anyio
async def test_anthropic_is_requested_by_its_own_headers() -> None:
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return web.json_response({"data": model_lists.ANTHROPIC, "has_more": False})

    found = await listed(answer, runtime="litellm", key_env="KEY")
    assert found.models == (ListedModel("claude-haiku-4-5-20251001", 1760486400.0),)
    assert (seen[0].headers["x-api-key"], seen[0].query["limit"]) == (KEY, "1000")
    assert "authorization" not in seen[0].headers


async def redirecting(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMovedPermanently("http://127.0.0.1:9/elsewhere")


async def page(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Hello</html>", content_type="text/html")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "cause", "problem"),
    [
        (page, "invalid_response", "no JSON"),
        (redirecting, "unexpected_status", "HTTP 301"),
        (refusing(404), "not_found", "HTTP 404"),
        (refusing(503), "server_error", "HTTP 503"),
        (hanging_up, "connection_lost", ""),
        (listing([{"id": "auto", "owned_by": "coe"}]), "invalid_response", "a CoE gateway"),
    ],
)
async def test_other_answers_are_failures_with_a_remedy(answer: Answer, cause: str, problem: str) -> None:
    found = await listed(answer)
    assert (found.cause, found.models) == (cause, ())
    assert problem in found.problem
    assert found.remedy


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["sk-1\n", " sk-1", "sk-\u00e9", "sk-\x1b"])
async def test_a_key_that_no_header_can_hold_is_refused_before_the_request(key: str) -> None:
    (found,) = await list_models([source_at(closed_port(), key_env="KEY")], {"KEY": key})
    assert (found.cause, "KEY holds characters" in found.problem) == ("unauthorized", True)
    assert "sk-" not in repr(found)


@pytest.mark.anyio
async def test_a_server_that_never_answers_ends_by_its_timeout() -> None:
    found = await listed(silent, timeout=0.1)
    assert (found.cause, "0.1 s" in found.problem) == ("timeout", True)


@pytest.mark.anyio
async def test_no_more_than_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MAX_LIST_BYTES", 2**20)
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**16)
            sent += 2**16

    found = await listed(endless)
    assert (found.cause, "more than 1 MiB" in found.problem) == ("invalid_response", True)
    assert sent < 2**24  # what sockets buffer, and not what the server would send


@pytest.mark.anyio
async def test_a_closed_port_of_this_machine_is_absent_and_one_that_was_given_is_not() -> None:
    root = closed_port()
    local, given = await list_models([source_at(root, kind="local"), source_at(root)], {})
    assert (local.is_absent, given.is_absent, given.cause) == (True, False, "connection_refused")


@pytest.mark.parametrize(
    "name", ["${OPENAI_API_KEY}", "os.environ/OPENAI_API_KEY", "a b", "a\nb: c", "a\x1b[31m", "", "x" * 300, 7, None]
)
def test_names_that_would_change_the_declaration_are_left_out(name: Any) -> None:
    assert read_models(orjson.dumps({"data": [{"id": name}, {"id": "good"}]})) == ((ListedModel("good"),), 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"created": "yesterday", "context_length": "long", "pricing": {"prompt": "free", "completion": None}},
        {"created": None, "max_model_len": -1, "meta": [], "pricing": []},
        {"created": True, "context_window": True, "pricing": {"input": 1e99, "output": 0}},
    ],
)
def test_fields_of_another_type_are_unknown(fields: dict[str, Any]) -> None:
    ((model,), _) = read_models(orjson.dumps({"data": [{"id": "m"} | fields]}))
    assert model == ListedModel("m")
