"""Lists of models from real sockets: the forms of different servers, and servers that answer with something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.cli import init as sources_module
from coe.cli.init import Model, NoModels, Source, endpoint, find_models, read_models
from tests.experts.fault_servers import Answer, closed_port, hanging_up, refusing, server, servers, silent
from tests.init import model_lists
from tests.init.model_lists import listing

KEY = "sk-very-secret-4711"


def source_at(root: str, **changes: Any) -> Source:
    return replace(endpoint(root), **changes)


async def listed(answer: Answer, **changes: Any) -> list[Model]:
    async with server(answer) as root:
        (found,) = await find_models([source_at(root, **changes)], {"KEY": KEY}, {"": {}})
    assert KEY not in repr(found)
    if isinstance(found, NoModels):
        raise found
    return found


@pytest.mark.anyio
async def test_servers_of_each_kind_are_listed_at_the_same_time() -> None:
    kinds = (model_lists.OLLAMA, model_lists.VLLM, model_lists.LLAMA_CPP, model_lists.LM_STUDIO)
    async with servers([listing(models) for models in kinds]) as roots:
        found = await find_models([source_at(root) for root in roots], {}, {})
    models = [one for each in found if not isinstance(each, NoModels) for one in each]
    assert [(one.id, one.context_length) for one in models] == [
        ("llama3.2:3b", None),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 32768),
        ("/models/gemma-3-4b-it-Q4_K_M.gguf", 16384),
        ("qwen3-30b-a3b", None),
    ]


@pytest.mark.anyio
async def test_the_key_goes_into_the_header_and_a_refused_key_names_its_variable() -> None:
    assert await listed(listing(model_lists.VLLM, key=KEY), key_env="KEY")
    for key_env, remedy in (("OTHER", "set OTHER to a valid key"), ("", "--key-env")):
        with pytest.raises(NoModels, match=remedy):
            await listed(listing(model_lists.VLLM, key=KEY), key_env=key_env)


@pytest.mark.anyio
async def test_anthropic_is_requested_by_its_own_headers() -> None:
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return web.json_response({"data": model_lists.ANTHROPIC, "has_more": False})

    (found,) = await listed(answer, runtime="litellm", key_env="KEY")
    assert (found.id, found.created) == ("claude-haiku-4-5-20251001", 1760486400.0)
    assert (seen[0].headers["x-api-key"], seen[0].query["limit"]) == (KEY, "1000")
    assert "authorization" not in seen[0].headers


async def redirecting(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMovedPermanently("http://127.0.0.1:9/elsewhere")


async def page(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Hello</html>", content_type="text/html")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (page, "not JSON"),
        (redirecting, "HTTP 301"),
        (refusing(503), "HTTP 503"),
        (hanging_up, "connection_lost"),
        (silent, "within 0.5 s"),
        (listing([{"id": "auto", "owned_by": "coe"}]), "a CoE gateway"),
    ],
)
async def test_other_answers_are_failures_with_a_remedy(answer: Answer, problem: str) -> None:
    with pytest.raises(NoModels, match=problem):
        await listed(answer, timeout=0.5 if answer is silent else 10.0)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["sk-1\n", " sk-1", "sk-\u00e9", "sk-\x1b"])
async def test_a_key_that_no_header_can_hold_is_refused_before_the_request(key: str) -> None:
    (found,) = await find_models([source_at(closed_port(), key_env="KEY")], {"KEY": key}, {})
    assert "KEY holds characters" in str(found)
    assert "sk-" not in repr(found)


@pytest.mark.anyio
async def test_no_more_than_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "MAX_LIST_BYTES", 2**20)
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**16)
            sent += 2**16

    with pytest.raises(NoModels, match="more than 1 MiB"):
        await listed(endless)
    assert sent < 2**24  # what sockets buffer, and not what the server would send


@pytest.mark.anyio
async def test_a_closed_port_of_this_machine_is_absent_and_one_that_was_given_is_not() -> None:
    root = closed_port()
    local, given = await find_models([source_at(root, kind="local"), source_at(root)], {}, {})
    assert [isinstance(one, NoModels) and one.is_absent for one in (local, given)] == [True, False]


@pytest.mark.parametrize(
    "name", ["${OPENAI_API_KEY}", "os.environ/OPENAI_API_KEY", "a b", "a\nb: c", "a\x1b[31m", "", "x" * 300, 7, None]
)
def test_names_that_would_change_the_declaration_are_left_out(name: Any) -> None:
    page = orjson.dumps({"data": [{"id": name}, {"id": "good"}]})
    assert [one.id for one in read_models(page, endpoint("http://h"), {})] == ["good"]
