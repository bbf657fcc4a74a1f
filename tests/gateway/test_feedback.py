"""`POST /v1/feedback`, in process and over real stores."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import StoreError
from coe.learning.experience import load_experience
from coe.learning.log_frame import frame_of
from coe.records import open_log_and_feedback
from coe.records.record import Feedback
from gateway.endpoints import feedback as endpoint
from gateway.observability import observers as lookup
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.served import Served, serving
from tests.observability.pages import value
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio

PATH = "/v1/feedback"
EXPERTS = ("coder", "painter", "generalist")
UNKNOWN_ID = "req_" + "0" * 32


async def say(gateway: Gateway, *, key: str | None = None, **fields: Any) -> Response:
    headers = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
    return await gateway.post(PATH, orjson.dumps(fields), headers=headers)


@pytest.mark.parametrize(
    ("said", "kind", "kept"),
    [
        ({"score": 0.25}, "score", 0.25),
        ({"score": 1}, "score", 1.0),
        ({"thumb": "up"}, "thumb", 1),
        ({"thumb": "down"}, "thumb", -1),
        ({"preferred": "painter"}, "preferred", "painter"),
        ({"category": "art"}, "category", "art"),
    ],
)
async def test_every_kind_of_feedback_is_stored(said: dict[str, Any], kind: str, kept: float | str) -> None:
    async with gateway_of() as gateway:
        request_id = (await gateway.chat("code")).headers["x-request-id"]
        response = await say(gateway, request_id=request_id, event_id="e1", **said)
        page = (await gateway.post("/metrics", method="GET")).body
    assert response.status == 200
    assert response.json == {"id": "e1", "request_id": request_id, "stored": True, "checked": True}
    (event,) = gateway.log.events
    assert event == Feedback("e1", request_id, event.time, kind, kept)  # type: ignore[arg-type]
    assert value(page, "coe_feedback_total", kind=kind) == 1


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({}, None),
        ({"score": 1, "thumb": "up"}, "thumb"),
        ({"score": 1.001}, "score"),
        ({"score": -0.5}, "score"),
        ({"score": True}, "score"),
        ({"score": "1"}, "score"),
        ({"score": None}, "score"),
        ({"thumb": "sideways"}, "thumb"),
        ({"thumb": ["up"]}, "thumb"),
        ({"preferred": "nobody"}, "preferred"),
        ({"preferred": ""}, "preferred"),
        ({"category": "weather"}, "category"),
        ({"category": 5}, "category"),
        ({"score": 1, "event_id": ""}, "event_id"),
        ({"score": 1, "event_id": "x" * 129}, "event_id"),
        ({"score": 1, "request_id": 7}, "request_id"),
        ({"score": 1, "stars": 5}, "stars"),
    ],
)
async def test_the_error_of_wrong_feedback_names_the_field(said: dict[str, Any], param: str | None) -> None:
    async with gateway_of() as gateway:
        request_id = (await gateway.chat("code")).headers["x-request-id"]
        response = await say(gateway, **({"request_id": request_id} | said))
    assert response.status == 400
    assert response.error["param"] == param
    assert gateway.log.events == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"request_id": "\\ud800"}'])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    async with gateway_of() as gateway:
        assert (await gateway.post(PATH, body)).status == 400


async def test_a_body_is_bounded_in_size_and_must_be_json() -> None:
    async with gateway_of() as gateway:
        large = await gateway.post(PATH, b'{"request_id": "' + b"x" * 65_536 + b'"}')
        text = await gateway.post(PATH, b"{}", headers={"content-type": "text/plain"})
    assert (large.status, large.error["code"]) == (413, "body_too_large")
    assert "64 KiB" in large.error["message"]
    assert text.status == 415


async def test_an_unknown_request_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOKUP_DELAYS_SECONDS", (0.0, 0.0))
    async with gateway_of() as gateway:
        for request_id in (UNKNOWN_ID, "of somebody else's making"):
            response = await say(gateway, request_id=request_id, score=1)
            assert (response.status, response.error["code"]) == (404, "feedback_unknown_request")
            assert "x-request-id" in response.error["message"]


async def test_a_record_that_is_still_on_its_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway_of() as gateway:
        request_id = (await gateway.chat("code")).headers["x-request-id"]
        late, looks = gateway.records.pop(), []
        find = gateway.log.find

        async def arriving(request_id: str) -> Any:
            looks.append(request_id)
            if len(looks) == 2:
                gateway.records.append(late)
            return await find(request_id)

        monkeypatch.setattr(gateway.log, "find", arriving)
        response = await say(gateway, request_id=request_id, score=1)
    assert response.status == 200
    assert looks == [request_id] * 2


async def test_another_tenants_request_is_as_unknown_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of("alice", tenant="a"), key_of("anna", tenant="a"), key_of("bob"), key_of("mute", scopes=("chat",))]
    registry = registry_of(access={"keys": [key.model_dump(mode="json") for key in keys]})
    looks = []
    async with gateway_of(registry) as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        asked = await gateway.post("/v1/chat/completions", body, headers=headers)
        request_id = asked.headers["x-request-id"]
        find = gateway.log.find

        async def looking(request_id: str) -> Any:
            looks.append(request_id)
            return await find(request_id)

        monkeypatch.setattr(lookup, "LOOKUP_DELAYS_SECONDS", (0.0, 0.0, 0.0))
        monkeypatch.setattr(gateway.log, "find", looking)
        foreign = await say(gateway, key="bob", request_id=request_id, score=0)
        unknown = await say(gateway, key="bob", request_id=UNKNOWN_ID, score=0)
        colleague = await say(gateway, key="anna", request_id=request_id, score=1)
        assert (await say(gateway, key="mute", request_id=request_id, score=1)).status == 403
        assert (await say(gateway, request_id=request_id, score=1)).status == 401
    assert foreign.status == unknown.status == 404
    assert foreign.body.replace(request_id.encode(), UNKNOWN_ID.encode()) == unknown.body
    assert looks == [request_id] * 3 + [UNKNOWN_ID] * 3 + [request_id]
    assert colleague.status == 200
    (event,) = gateway.log.events
    assert (event.tenant, event.key) == ("a", "anna")


async def test_an_administrator_speaks_for_any_tenant_under_its_own_name() -> None:
    keys = [
        key_of("alice", tenant="a"),
        key_of("boss", scopes=("admin", "feedback")),
        key_of("mute", scopes=("admin",)),
    ]
    registry = registry_of(access={"keys": [key.model_dump(mode="json") for key in keys]})
    async with gateway_of(registry) as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        request_id = (await gateway.post("/v1/chat/completions", body, headers=headers)).headers["x-request-id"]
        assert (await say(gateway, key="alice", request_id=request_id, score=1)).status == 200
        assert (await say(gateway, key="boss", request_id=request_id, score=0)).status == 200
        assert (await say(gateway, key="mute", request_id=request_id, score=0)).status == 403
        seen = load_experience(
            frame_of([gateway.records], [gateway.log.events]), categories=("code", "art", "general"), experts=EXPERTS
        )
    assert [(event.tenant, event.key) for event in gateway.log.events] == [("a", "alice"), ("a", "boss")]
    assert dict(seen.left_out) == {}


async def test_without_a_spool_a_log_that_takes_nothing_or_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "STORE_SECONDS", 0.05)
    async with gateway_of() as gateway:
        request_id = (await gateway.chat("code")).headers["x-request-id"]
        gateway.log.gate.clear()
        silent = await say(gateway, request_id=request_id, score=1)
        gateway.log.fails = StoreError("redis at 10.0.0.1:6379: OOM")
        gateway.log.gate.set()
        refused = await say(gateway, request_id=request_id, thumb="up")
        at_once = await say(gateway, request_id=request_id, thumb="down")
        gateway.log.fails = None
    for response in (refused, silent, at_once):
        assert (response.status, response.error["code"]) == (503, "log_unavailable")
        assert response.headers["retry-after"] == "1"
        assert "10.0.0.1" not in response.error["message"]


# ------------------------------------------------------------------------------------------------- on a real port


async def send_chat(served: Served) -> str:
    async with served.send_chat("good") as response:
        await response.read()
        return response.headers["x-request-id"]


async def post(served: Served, **fields: Any) -> tuple[int, dict[str, Any]]:
    async with served.client.post(f"{served.url}{PATH}", json=fields) as response:
        return response.status, await response.json()


async def kept(served: Served) -> list[Feedback]:
    log = open_log_and_feedback(served.declared["log"]["url"], base=served.folder / ".coe")[1]
    page = await log.read()
    await log.aclose()
    return [replace(event, time=0.0) for event in page.events]


async def wait_until_kept(served: Served, event: Feedback) -> None:
    """Wait until the log has only this event. It comes from the spool if the log was slow."""
    async with asyncio.timeout(60):
        while await kept(served) != [event]:
            await asyncio.sleep(0.05)


async def check(served: Served) -> None:
    """Feedback immediately after the answer, repeated, and changed."""
    request_id = await send_chat(served)
    status, body = await post(served, request_id=request_id, thumb="up")
    assert (status, body["stored"]) == (200, True)
    assert await post(served, request_id=request_id, thumb="up") == (status, body)
    await wait_until_kept(served, Feedback(body["id"], request_id, 0.0, "thumb", 1))
    _, changed = await post(served, request_id=request_id, thumb="down")
    await wait_until_kept(served, Feedback(changed["id"], request_id, 0.0, "thumb", -1))
    while (status := (await post(served, request_id=UNKNOWN_ID, thumb="up"))[0]) == 202:
        pass  # a busy machine did not read the log in time
    assert status == 404


async def test_feedback_reaches_redis_and_a_hanging_redis_delays_it_only_briefly(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    async with serving(tmp_path, log={"url": redis_server.url}) as served:
        await check(served)
        request_id = await send_chat(served)
        assert (await post(served, request_id=request_id, score=0.5))[0] == 200
        redis_server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                status, body = await post(served, request_id=request_id, score=1)
        finally:
            redis_server.signal(signal.SIGCONT)
        assert (status, body["stored"], body["checked"]) == (202, True, False)
        assert (await post(served, request_id=request_id, thumb="up"))[0] in (200, 202)
        async with asyncio.timeout(60):
            while len(found := await kept(served)) < 3:
                await asyncio.sleep(0.05)
    assert [(event.kind, event.value) for event in found if event.request_id == request_id] == [
        ("score", 1.0),
        ("thumb", 1),
    ]
