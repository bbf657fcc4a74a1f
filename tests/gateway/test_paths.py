"""Paths and methods beside the usual ones: slashes at the end, `/`, `/health`, and mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from coe.core import Health
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "code"}]}
APIS = {"apis": ["chat", "completions", "responses", "messages", "embeddings"]}
LOCAL = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", **APIS}
ALICE = {"name": "alice", "sha256": "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90"}


def able(**changes: Any) -> Any:
    return registry_of(
        experts=[{"name": name, **LOCAL} for name in ("coder", "painter", "generalist")],
        aliases={"gpt-*": "auto", "gpt-4": "painter"},
        operating_points={"best": {"cost_weight": 0}},
        **changes,
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/", CHAT),
        ("/v1/chat/completions//", CHAT),
        ("/v1/completions/", {"prompt": "code"}),
        ("/v1/responses/", {"input": "code"}),
        ("/v1/messages/", CHAT),
        ("/v1/route/", CHAT),
    ],
)
async def test_a_path_with_a_slash_is_served_without_a_redirect(path: str, body: Mapping[str, Any]) -> None:
    async with gateway_of(able()) as gateway:
        response = await gateway.post(path, orjson.dumps({"model": "auto", **body}))
        models, again = [await gateway.post(path, method="GET") for path in ("/v1/models", "/v1/models/")]
    assert response.status == 200, response.body
    assert again.json == models.json


@pytest.mark.parametrize(
    ("path", "method", "status", "message"),
    [
        ("/chat/completions", "POST", 404, "did you mean /v1/chat/completions? The base URL ends in /v1 for OpenAI"),
        ("/v1/v1/messages", "POST", 404, "did you mean /v1/messages? The base URL ends in"),
        ("/v1/metrics", "GET", 404, "did you mean /metrics?"),
        ("/nowhere/at/all" * 1000, "GET", 404, "there is no such path; see /openapi.json"),
        ("/v1/chat/completions", "GET", 405, "GET /v1/chat/completions: this path takes POST"),
        ("/v1/models", "POST", 405, "POST /v1/models: this path takes GET, HEAD"),
    ],
)
async def test_a_wrong_path_or_method_is_answered_with_the_right_one(
    path: str, method: str, status: int, message: str
) -> None:
    async with gateway_of() as gateway:
        response = await gateway.post(path, method=method)
        anthropic = await gateway.post(path, method=method, headers={"anthropic-version": "2023-06-01"})
    assert response.status == anthropic.status == status
    assert message in orjson.loads(response.body)["error"]["message"]
    assert anthropic.json["type"] == "error"
    assert message in anthropic.json["error"]["message"]


async def test_the_root_leads_browsers_to_the_page_and_others_to_the_api() -> None:
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with gateway_of(able(access={"keys": [ALICE]})) as gateway:
        browser = await gateway.post("/", method="GET", headers={"accept": "text/html,*/*;q=0.8", **followed})
        program = await gateway.post("/", method="GET", headers={"accept": "*/*"})
        for link in ("page", "health", "openapi"):
            assert (await gateway.post(program.json[link], method="GET", headers={})).status == 200
        assert (await gateway.post(program.json["models"], method="GET", headers={"x-api-key": "alice"})).status == 200
    assert (browser.status, browser.headers["location"]) == (307, "ui/")
    assert program.json["name"] == "Composition of Experts"


async def test_health_sums_up_liveness_readiness_and_the_experts() -> None:
    async with gateway_of(able(access={"keys": [ALICE]})) as gateway:
        gateway.experts["coder"].health = Health(up=False)
        found = await gateway.post("/health", method="GET", headers={})
        ready = await gateway.post("/health/ready", method="GET", headers={})
        gateway.services.leaving = True
        left = await gateway.post("/health/", method="GET", headers={})
    assert found.status == 200
    assert found.json == {**ready.json, "live": True, "ready": True, "experts": 3, "experts_up": 2}
    assert (left.status, left.json["ready"], left.json["live"]) == (503, False, True)
