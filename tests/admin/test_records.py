"""`/v1/records`: the list, and one record."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.errors import StoreError
from gateway.endpoints.admin import records
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio


async def read(gateway: Gateway, path: str = "/v1/records", query: str = "", **headers: str) -> Response:
    return await gateway.post(path, method="GET", query=query, headers=headers)


async def sent(gateway: Gateway, text: str, **fields: Any) -> str:
    return (await gateway.chat(text, **fields)).headers["x-request-id"]


async def test_records_come_newest_first_page_by_page() -> None:
    async with gateway_of() as gateway:
        ids = [await sent(gateway, text) for text in ("code", "art", "hello", "code", "art")]
        seen, cursor = [], ""
        while True:
            page = (await read(gateway, query=f"limit=2&before={cursor}")).json
            seen += [record["request_id"] for record in page["data"]]
            if not (cursor := page["cursor"]):
                break
    assert seen == ids[::-1]
    assert page["choices"]["expert"] == ["coder", "painter", "generalist"]
    assert {"ok", "aborted", "expert_timeout", "expert_busy"} <= set(page["choices"]["outcome"])
    assert set(page["data"][0]) == set(records.LIST_FIELDS)


async def test_filters_go_to_the_log() -> None:
    async with gateway_of() as gateway:
        first = await sent(gateway, "code")
        await sent(gateway, "art")
        for query in ("category=code", "expert=coder&reason=routed", f"id={first[:20]}", "until=1e10&category=code"):
            assert [one["request_id"] for one in (await read(gateway, query=query)).json["data"]] == [first]
        for query in ("session=s", "tenant=t", "outcome=aborted", "until=5", "since=32503680000"):
            assert (await read(gateway, query=query)).json["data"] == []


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
async def test_a_wrong_query_is_refused_by_parameter(query: str, param: str) -> None:
    async with gateway_of() as gateway:
        response = await read(gateway, query=query)
    assert (response.status, response.error["param"]) == (400, param)


async def test_one_record_has_all_fields_and_its_feedback() -> None:
    async with gateway_of() as gateway:
        request_id = await sent(gateway, "code")
        body = orjson.dumps({"request_id": request_id, "thumb": "up"})
        assert (await gateway.post("/v1/feedback", body)).status == 200
        found = (await read(gateway, f"/v1/records/{request_id}")).json
        (record,) = gateway.records
    assert found["probabilities"] == record.probabilities
    assert found["utility"] == list(record.utility)
    assert "embedding" not in found
    (event,) = found["feedback"]
    assert (event["kind"], event["value"]) == ("thumb", 1)


async def test_a_failing_log_is_unavailable_and_its_address_stays_hidden() -> None:
    async with gateway_of() as gateway:
        gateway.log.fails = StoreError("redis at 10.0.0.1:6379: away")
        response = await read(gateway)
    assert (response.status, response.error["code"]) == (503, "log_unavailable")
    assert "10.0.0.1" not in response.error["message"]


async def test_records_are_for_administrators_who_see_all_tenants() -> None:
    keys = [key_of("alice", tenant="a"), key_of("boss", scopes=("admin",))]
    async with gateway_of(registry_of(access={"keys": [key.model_dump(mode="json") for key in keys]})) as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        request_id = (await gateway.post("/v1/chat/completions", body, headers=headers)).headers["x-request-id"]
        said = orjson.dumps({"request_id": request_id, "score": 0.5})
        assert (await gateway.post("/v1/feedback", said, headers=headers)).status == 200
        for path in ("/v1/records", f"/v1/records/{request_id}"):
            assert (await read(gateway, path, **{"x-api-key": "alice"})).status == 403
            assert (await read(gateway, path)).status == 401
        found = (await read(gateway, f"/v1/records/{request_id}", **{"x-api-key": "boss"})).json
    assert [(event["key"], event["tenant"]) for event in found["feedback"]] == [("alice", "a")]
