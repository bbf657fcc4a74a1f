"""`/v1/records`: listing, looking at one, and deciding it again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from coe.core import Health
from coe.errors import LogError, UnknownCursor
from gateway.endpoints.admin import records as endpoint
from gateway.endpoints.admin import records as record_bodies
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

PROMPTS = {"log": {"url": "sqlite:///log.sqlite", "store_prompts": True}}


async def look(gateway: Gateway, path: str = "/v1/records", query: str = "", **headers: str) -> Response:
    return await gateway.post(path, method="GET", query=query, headers=headers)


async def again(gateway: Gateway, request_id: str) -> Response:
    return await gateway.post(f"/v1/records/{request_id}/decision")


async def asked(gateway: Gateway, text: str, **fields: Any) -> str:
    return (await gateway.chat(text, **fields)).headers["x-request-id"]


async def test_records_come_newest_first_page_by_page() -> None:
    async with gateway_of() as gateway:
        ids = [await asked(gateway, text) for text in ("code", "art", "hello", "code", "art")]
        seen, cursor = [], ""
        while True:
            page = (await look(gateway, query=f"limit=2&before={cursor}")).json
            seen += [record["request_id"] for record in page["data"]]
            if not (cursor := page["cursor"]):
                break
    assert seen == ids[::-1]
    assert page["choices"]["expert"] == ["coder", "painter", "generalist"]
    assert {"ok", "aborted", "expert_timeout", "overloaded"} <= set(page["choices"]["outcome"])
    assert set(page["data"][0]) == set(record_bodies.SHOWN)


async def test_filters_go_to_the_log() -> None:
    async with gateway_of() as gateway:
        first = await asked(gateway, "code")
        await asked(gateway, "art")
        for query in ("category=code", "expert=coder&reason=routed", f"id={first[:20]}", "until=1e10&category=code"):
            assert [one["request_id"] for one in (await look(gateway, query=query)).json["data"]] == [first]
        for query in ("session=s", "tenant=t", "outcome=aborted", "until=5", "since=32503680000"):
            assert (await look(gateway, query=query)).json["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("since=yesterday", "since"),
        ("since=-1", "since"),
        ("until=nan", "until"),
        ("category=" + "x" * 129, "category"),
        ("before=elsewhere", "before"),
        ("before=-1", "before"),
        ("colour=red", "colour"),
    ],
)
async def test_what_is_wrong_with_a_search_is_refused_by_name(query: str, param: str) -> None:
    async with gateway_of() as gateway:
        response = await look(gateway, query=query)
    assert (response.status, response.error["param"]) == (400, param)


async def test_one_record_tells_all_and_what_was_said_of_it() -> None:
    async with gateway_of() as gateway:
        request_id = await asked(gateway, "code")
        body = orjson.dumps({"request_id": request_id, "thumb": "up"})
        assert (await gateway.post("/v1/feedback", body)).status == 200
        told = (await look(gateway, f"/v1/records/{request_id}")).json
        (record,) = gateway.records
    assert told["probabilities"] == record.probabilities
    assert told["utility"] == list(record.utility)
    assert "embedding" not in told
    (said,) = told["feedback"]
    assert (said["kind"], said["value"]) == ("thumb", 1)


async def test_what_is_not_there_is_not_found() -> None:
    async with gateway_of() as gateway:
        for method, path in (("GET", "/v1/records/nobody"), ("POST", "/v1/records/nobody/decision")):
            response = await gateway.post(path, method=method)
            assert (response.status, response.error["code"]) == (404, "record_not_found")


async def test_a_log_that_cannot_be_read_is_unavailable_and_does_not_tell_where_it_is() -> None:
    async with gateway_of() as gateway:
        gateway.log.fails = LogError("redis at 10.0.0.1:6379: away")
        response = await look(gateway)
    assert (response.status, response.error["code"]) == (503, "log_unavailable")
    assert "10.0.0.1" not in response.error["message"]


async def test_a_cursor_of_another_log_is_the_clients_mistake() -> None:
    async with gateway_of() as gateway:
        gateway.log.fails = UnknownCursor("7-1 is no cursor of this log")
        response = await look(gateway, query="before=7-1")
    assert (response.status, response.error["param"]) == (400, "before")


async def test_only_so_many_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "AT_ONCE", 0)
    async with gateway_of() as gateway:
        response = await look(gateway)
    assert (response.status, response.headers["retry-after"]) == (429, "1")


async def test_records_are_for_administrators_who_see_all_tenants() -> None:
    keys = [key_of("alice", tenant="a"), key_of("boss", scopes=("admin",))]
    async with gateway_of(registry_of(access={"keys": [key.model_dump(mode="json") for key in keys]})) as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        request_id = (await gateway.post("/v1/chat/completions", body, headers=headers)).headers["x-request-id"]
        said = orjson.dumps({"request_id": request_id, "score": 0.5})
        assert (await gateway.post("/v1/feedback", said, headers=headers)).status == 200
        for path in ("/v1/records", f"/v1/records/{request_id}"):
            assert (await look(gateway, path, **{"x-api-key": "alice"})).status == 403
            assert (await look(gateway, path)).status == 401
        told = (await look(gateway, f"/v1/records/{request_id}", **{"x-api-key": "boss"})).json
    assert [(event["key"], event["tenant"]) for event in told["feedback"]] == [("alice", "a")]


async def test_nothing_changed_so_nothing_would_be_decided_otherwise() -> None:
    async with gateway_of() as gateway:
        for text in ("code", "art", "hello", "code and art"):
            told = (await again(gateway, await asked(gateway, text))).json
            then, now = told["then"], told["now"]
            assert told["source"] == "posterior"
            assert now["probabilities"] == pytest.approx(then["probabilities"], abs=1e-4)
            assert now["utility"] == pytest.approx(then["utility"], abs=1e-3)
            for name in ("expert", "category", "reason", "candidates", "router", "config", "assignment"):
                assert now[name] == then[name]


async def test_experts_as_they_stand_now_decide() -> None:
    async with gateway_of() as gateway:
        request_id = await asked(gateway, "code")
        gateway.experts["coder"].health = Health(up=False)
        told = (await again(gateway, request_id)).json
    assert told["then"]["expert"] == "coder"
    assert told["now"]["expert"] != "coder"
    assert told["now"]["candidates"][-1] == "coder"


async def test_a_prompt_that_was_kept_is_classified_anew() -> None:
    async with gateway_of(registry_of(**PROMPTS)) as gateway:
        request_id = await asked(gateway, "art")
        gateway.records[0] = replace(gateway.records[0], probabilities={"code": 1.0, "art": 0.0, "general": 0.0})
        kept = (await again(gateway, request_id)).json
        gateway.records[0] = replace(gateway.records[0], prompt=None)
        lost = (await again(gateway, request_id)).json
    assert (kept["source"], kept["now"]["expert"]) == ("prompt", "painter")
    assert (lost["source"], lost["now"]["expert"]) == ("posterior", "coder")


async def test_categories_that_are_no_longer_declared_count_as_general() -> None:
    async with gateway_of() as gateway:
        request_id = await asked(gateway, "code")
        gateway.records[0] = replace(gateway.records[0], probabilities={"weather": 0.9, "art": 0.1})
        told = (await again(gateway, request_id)).json
    assert told["now"]["probabilities"] == pytest.approx({"code": 0, "art": 0.1, "general": 0.9})
    assert told["now"]["expert"] == "generalist"


async def test_what_a_request_needed_still_holds() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with gateway_of() as gateway:
        request_id = await asked(gateway, "art", tools=[tool])
        told = (await again(gateway, request_id)).json
        gateway.records[0] = replace(gateway.records[0], needs=None)
        unknown = (await again(gateway, request_id)).json
    assert (told["needs_known"], told["now"]["candidates"]) == (True, ["coder"])
    assert (unknown["needs_known"], unknown["now"]["expert"]) == (False, "painter")


async def test_a_pin_stays_a_pin_and_a_follow_up_one() -> None:
    async with gateway_of() as gateway:
        pinned = (await again(gateway, await asked(gateway, "code", model="painter"))).json
        request_id = await asked(gateway, "code and art")
        first = gateway.records[-1]
        gateway.records[-1] = replace(first, reason="sticky", candidates=("painter", "coder"), expert="painter")
        sticky = (await again(gateway, request_id)).json
    assert (pinned["now"]["expert"], pinned["now"]["reason"]) == ("painter", "pinned")
    assert (sticky["now"]["expert"], sticky["now"]["reason"]) == ("painter", "sticky")


async def test_a_request_that_was_never_classified_cannot_be_decided_again() -> None:
    async with gateway_of() as gateway:
        refused = await gateway.post("/v1/chat/completions", b"{")
        response = await again(gateway, refused.headers["x-request-id"])
    assert (response.status, response.error["code"]) == (409, "not_classified")
