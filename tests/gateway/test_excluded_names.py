"""A name that the list of an API key excludes has the same response as one that does not exist, at every endpoint."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import InvalidRequest
from coe.registry import Policy
from gateway.access.access import Caller
from gateway.request.body import read_head
from gateway.request.head import read_options
from tests.access.samples import key_of
from tests.fakes import Gateway, gateway_of
from tests.gateway.test_only_local import CHAT, EXPERTS, declared, headers_of, send_chat

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hello"}]
RECIPE = "x-coe-recipe"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/route": {"messages": MESSAGES},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/completions": {"prompt": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/rerank": {"query": "q", "documents": ["d"]},
}
CONTINUED = {"input": "hello", "previous_response_id": "resp_9"}
REQUESTS = [
    *((path, body, {}) for path, body in BODIES.items()),
    *((path, BODIES[path], {RECIPE: "mixed"}) for path in (CHAT, "/v1/route", "/v1/messages/count_tokens")),
    *((path, body | {"model": "auto"}, {RECIPE: "NAME"}) for path, body in BODIES.items()),
    (CHAT, BODIES[CHAT] | {"model": "coder"}, {RECIPE: "NAME"}),
    ("/v1/responses", CONTINUED, {}),
    ("/v1/responses", CONTINUED | {"model": "auto"}, {RECIPE: "NAME"}),
]
EXCLUDED_MODELS = ("painter", "tiny", "graded", "claude", "gpt-4o")
"""Experts, a recipe, and aliases of an expert."""


async def answers(gateway: Gateway, path: str, body: dict[str, Any], headers: dict[str, str], name: str) -> list[Any]:
    """The status, headers and body, with placeholders for the request's id and the name that was sent."""
    headers = headers_of("alice", **{key: name if value == "NAME" else value for key, value in headers.items()})
    response = await gateway.post(path, orjson.dumps({"model": name} | body), headers=headers)
    shown = {key: value for key, value in response.headers.items() if key not in ("x-request-id", "content-length")}
    text = response.body.decode().replace(repr(name), "'NAME'")
    if request_id := response.headers.get("x-request-id"):
        text = text.replace(request_id, "ID")
    return [response.status, shown, text]


@pytest.mark.parametrize(("path", "body", "headers"), REQUESTS)
async def test_a_request_cannot_discover_what_its_key_excludes(
    path: str, body: dict[str, Any], headers: dict[str, str], tmp_path: Path
) -> None:
    experts = [{**one, "prices": {"input": 1e6 if one["name"] in ("painter", "tiny") else 1.0}} for one in EXPERTS]
    keys = [key_of("alice", experts=["coder", "gen*"], limits={"dollars_per_day": 1.0}).model_dump(mode="json")]
    aliases = {"claude": "painter", "gpt-*": "painter"}
    registry = declared(experts=experts, aliases=aliases, access={"keys": keys})
    async with gateway_of(registry, stored=tmp_path) as gateway:
        expected = await answers(gateway, path, body, headers, "nosuch")
        assert expected[0] == 404
        assert "'NAME'" in expected[2]
        for name in EXCLUDED_MODELS:
            assert await answers(gateway, path, body, headers, name) == expected, name
        assert all(expert.calls == [] for expert in gateway.experts.values())  # type: ignore[attr-defined]


async def test_feedback_accepts_and_lists_only_what_the_key_may_use() -> None:
    keys = [key_of("alice", experts=["coder", "gen*"]).model_dump(mode="json")]
    async with gateway_of(declared(access={"keys": keys})) as gateway:
        request_id = (await send_chat(gateway, headers=headers_of("alice"))).headers["x-request-id"]

        async def preferred(name: str) -> tuple[int, str]:
            body = orjson.dumps({"request_id": request_id, "preferred": name})
            response = await gateway.post("/v1/feedback", body, headers=headers_of("alice"))
            return response.status, response.body.decode().replace(repr(name), "'NAME'")

        status, refusal = unknown = await preferred("nosuch")
        assert status == 400
        assert "not one of coder, generalist, mixed" in refusal
        assert [await preferred(name) for name in ("painter", "tiny", "graded")] == [unknown] * 3
        assert (await preferred("generalist"))[0] == 200


@pytest.mark.parametrize("values", list(itertools.product((b"true", b"false"), repeat=2)))
def test_no_repeated_header_lifts_the_mark_of_another(values: tuple[bytes, ...]) -> None:
    head = read_head({"headers": [(b"x-coe-only-local", value) for value in values]})
    with pytest.raises(InvalidRequest, match="x-coe-only-local must be one of true, false"):
        read_options(head, Policy(), caller=Caller())
