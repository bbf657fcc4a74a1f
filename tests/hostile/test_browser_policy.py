"""Requests that a browser sends for a page of another site, against the real application in process."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from starlette.routing import Route

from gateway.access.access import Access, BrowserPolicy
from gateway.access.limits import Limiter
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
STREAM = BODY[:-1] + b',"stream":true}'
JSON = {"content-type": "application/json"}
SAFELISTED = ("", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
"""Content types that a page may send to any origin without a preflight request; the first one is that of a Blob."""
WITH_BODIES = (
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/route",
    "/v1/messages/count_tokens",
    "/v1/feedback",
    "/v1/artifacts/router/rollback",
    "/v1/artifacts/router/promote",
    "/v1/config/check",
    "/v1/keys",
    *("/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score", "/tokenize", "/v1/tokenize"),
    *("/v1/audio/speech", "/v1/images/generations", "/v1/moderations"),
)
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations")
"""Endpoints that also accept a form, which a page may send to any origin."""
APP = "https://app.example.com"
ALLOWED = registry_of(access={"allowed_origins": [APP]})


async def sent(gateway: Gateway, headers: dict[str, str], *, path: str = CHAT, body: bytes = BODY) -> Response:
    return await gateway.post(path, body, headers={"host": "127.0.0.1:8080", **JSON, **headers})


# ------------------------------------------------------------------------------------------------- media types


@pytest.mark.parametrize("media_type", SAFELISTED)
async def test_a_body_needs_the_media_type_that_only_a_preflight_request_permits(media_type: str) -> None:
    headers = {"content-type": media_type} if media_type else {}
    async with gateway_of() as gateway:
        for path in WITH_BODIES:
            response = await gateway.post(path, BODY, headers=headers)
            assert response.status == 415, path
            assert "send the header content-type: application/json" in response.json["error"]["message"]
        assert not gateway.experts["coder"].calls


async def test_forms_of_another_sites_page_are_refused_and_other_types_need_a_preflight() -> None:
    form = {"content-type": "multipart/form-data; boundary=x", "host": "127.0.0.1:8080"}
    body = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ncoder\r\n--x--\r\n'
    async with gateway_of() as gateway:
        for path in FORMS:
            foreign = await gateway.post(path, body, headers={**form, "origin": "https://evil.example"})
            assert (foreign.status, foreign.error["code"]) == (403, "cross_origin_request"), path
            assert (await gateway.post(path, BODY, headers={"content-type": "text/plain"})).status == 415, path
        assert not gateway.experts["coder"].calls


async def test_every_endpoint_with_a_body_is_tried_above() -> None:
    async with gateway_of() as gateway:
        routes = (route for route in gateway.app.routes if isinstance(route, Route))
        posts = {route.path for route in routes if "POST" in (route.methods or ())}
    others = {"/v1/documents", "/v1/documents/search"}  # need a store
    tried = {path.replace("/router/", "/{kind}/") for path in WITH_BODIES + FORMS}
    assert posts - others == tried


# ------------------------------------------------------------------------------------------------- origins


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost:8080"},
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example", "sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_a_page_of_another_origin_gets_nothing(headers: dict[str, str]) -> None:
    async with gateway_of() as gateway:
        for path in (CHAT, "/v1/artifacts/router/rollback", "/v1/documents/a", "/v1/feedback"):
            response = await sent(gateway, headers, path=path)
            assert (response.status, response.error["code"]) == (403, "cross_origin_request"), path
            assert "access.allowed_origins" in response.error["message"]
            assert not [name for name in response.headers if name.startswith("access-control")]
            assert response.headers["vary"] == "Origin"
        assert not gateway.experts["coder"].calls
        assert not gateway.records


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:8080"},
        {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"},
        {"origin": "https://llm.example.com", "sec-fetch-site": "same-origin"},  # a proxy has changed the host
        {"sec-fetch-site": "none"},
    ],
)
async def test_programs_and_the_gateways_own_page_work_as_ever(headers: dict[str, str]) -> None:
    async with gateway_of() as gateway:
        response = await sent(gateway, headers)
    assert response.status == 200
    assert "vary" not in response.headers


async def test_a_link_opens_the_dashboard_and_nothing_else() -> None:
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with gateway_of() as gateway:

        async def status(path: str, *, method: str = "GET", **changes: str) -> int:
            headers = followed | {name.replace("_", "-"): value for name, value in changes.items()}
            return (await gateway.post(path, method=method, headers=headers)).status

        assert await status("/ui/") == 200
        assert await status("/ui") == 308
        assert await status("/ui/", method="POST") == 403
        assert await status("/ui/", sec_fetch_dest="iframe") == 403
        assert await status("/ui/", sec_fetch_mode="no-cors", sec_fetch_dest="image") == 403
        for path in ("/metrics", "/v1/models", "/v1/records", "/uix"):
            assert await status(path) == 403


async def test_refusals_speak_the_api_of_the_path_and_are_counted() -> None:
    async with gateway_of() as gateway:
        response = await sent(gateway, {"origin": "https://evil.example"}, path="/v1/messages")
        page = (await gateway.post("/metrics", method="GET")).body
    assert response.json["error"]["type"] == "permission_error"
    assert response.json["type"] == "error"
    assert b'coe_refused_total{outcome="cross_origin_request"} 1.0' in page


# ------------------------------------------------------------------------------------------------- allowed origins


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_an_allowed_origin_reads_answers_and_their_headers(body: bytes) -> None:
    async with gateway_of(ALLOWED) as gateway:
        response = await sent(gateway, {"origin": APP, "sec-fetch-site": "cross-site"}, body=body)
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["vary"] == "Origin"
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {name for name in response.headers if name.startswith("x-")} <= set(exposed)


async def test_a_preflight_request_permits_the_headers_of_the_common_clients() -> None:
    asked = (
        "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
        "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,x-api-key,"
        "anthropic-version,anthropic-beta,anthropic-dangerous-direct-browser-access,x-session-id,x-coe-explain"
    )
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": asked}
    async with gateway_of(ALLOWED) as gateway:
        headers = {"host": "127.0.0.1:8080", "origin": APP, **preflight}
        response = await gateway.post(CHAT, method="OPTIONS", headers=headers)
        foreign = await gateway.post(CHAT, method="OPTIONS", headers=headers | {"origin": "https://evil.example"})
        assert not gateway.records
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert response.headers["access-control-allow-headers"] == asked
    assert set(response.headers["access-control-allow-methods"].split(", ")) == {"GET", "POST", "DELETE"}
    assert "Origin" in response.headers["vary"]
    assert foreign.status == 403
    assert not [name for name in foreign.headers if name.startswith("access-control")]


# ------------------------------------------------------------------------------------------------- host names


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:x"]
)
async def test_on_loopback_another_host_name_gets_nothing(host: str) -> None:
    async with gateway_of() as gateway:
        for path in (CHAT, "/v1/models", "/metrics", "/health/live", "/ui/", "/v1/artifacts"):
            method = "POST" if path == CHAT else "GET"
            response = await gateway.post(path, BODY, method=method, headers={**JSON, "host": host})
            assert (response.status, response.error["code"]) == (421, "untrusted_host"), path
            assert "access.allowed_hosts" in response.error["message"]
        assert not gateway.experts["coder"].calls


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.:8080", "x.localhost", "127.0.0.1:8080", "[::1]:8080", "192.168.1.7"],
)
async def test_localhost_and_addresses_need_no_declaration(host: str) -> None:
    async with gateway_of() as gateway:
        assert (await sent(gateway, {"host": host})).status == 200


async def test_declared_host_names_are_accepted_with_any_port_and_checked_everywhere() -> None:
    hosts = ("llm.example.com", "*.intern.example")
    for policy in (BrowserPolicy(hosts=hosts), BrowserPolicy(hosts=hosts, host="0.0.0.0")):
        for host in ("llm.example.com", "LLM.example.com:443", "a.intern.example", "a.b.intern.example:1", "10.0.0.1"):
            assert policy.check(scope_of(host))[0] is None, host
        for host in ("example.com", "intern.example", "xllm.example.com", "evil-intern.example", ""):
            assert policy.check(scope_of(host))[0] is not None, host


def test_beyond_loopback_keys_protect_and_every_name_is_accepted_until_some_are_declared() -> None:
    assert BrowserPolicy(host="0.0.0.0").check(scope_of("any.example"))[0] is None


async def test_a_reload_changes_which_origins_are_allowed() -> None:
    async with gateway_of() as gateway:
        assert (await sent(gateway, {"origin": APP})).status == 403
        access = Access(ALLOWED, Limiter())
        gateway.services.replace(replace(gateway.services.snapshot, access=access))
        assert (await sent(gateway, {"origin": APP})).status == 200


@pytest.mark.parametrize("hosts", [(), ("",), ("localhost", "localhost"), ("localhost", "evil.example")])
def test_no_host_or_several_are_refused_with_the_reason(hosts: tuple[str, ...]) -> None:
    for policy in (BrowserPolicy(), BrowserPolicy(host="0.0.0.0")):
        error, _ = policy.check(scope_of(*hosts))
        assert (error.status, error.code) == (400, "invalid_host")  # type: ignore[union-attr]
        assert "one Host header" in str(error)


def test_the_name_that_the_gateway_listens_on_is_accepted() -> None:
    policy = BrowserPolicy(hosts=("llm.example.com",), host="Node-7")
    assert policy.check(scope_of("node-7:8080"))[0] is None


def scope_of(*hosts: str) -> dict[str, object]:
    headers = [(b"host", host.encode()) for host in hosts]
    return {"headers": headers, "http_version": "1.1", "method": "GET", "path": "/v1/models"}
