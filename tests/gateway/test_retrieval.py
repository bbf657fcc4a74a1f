"""The retrieval gate in the request path: when passages are added, how that is reported, and that it never fails a
request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from coe.errors import ExpertUnavailable, RetrievalError
from coe.registry.sections import RetrievalSpec
from gateway.request.streams import MAX_MENTIONS
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.retrieval.gates import ScriptedRetrieval, gate_of, passage

pytestmark = pytest.mark.anyio

TOWER = "The tower was built in 1889."


def answer(text: str) -> tuple[bytes, ...]:
    return (orjson.dumps({"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}),)


async def asked(gateway: Gateway, consent: str, text: str = "general when?", *, key: str = "") -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    headers = {"content-type": "application/json", "x-coe-retrieval": consent} | ({"x-api-key": key} if key else {})
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=headers)


def said(gateway: Gateway, expert: str = "generalist") -> str:
    content: str = gateway.experts[expert].calls[-1].fields["messages"][-1]["content"]
    return content


async def test_where_the_gate_opens_the_expert_reads_the_passages_and_the_client_learns_it() -> None:
    scripted = ScriptedRetrieval(passage(TOWER, source="https://example.org/tower"), gate=gate_of(3.0))
    async with gateway_of(retrieval=scripted.retrieval, generalist=answer("In 1889 [1].")) as gateway:
        response = await gateway.chat("general when was it built?")
        (record,) = gateway.records
    assert TOWER in said(gateway)
    assert said(gateway).endswith("general when was it built?")
    state, count, tokens = response.headers["x-coe-retrieval"].split("; ")
    assert (state, count) == ("used", "passages=1")
    assert (record.retrieval, record.passages, f"tokens={record.passage_tokens}") == ("used", ("id-The towe",), tokens)
    assert record.gate == pytest.approx(0.95, abs=0.01)
    assert record.retrieval_ms > 0
    assert response.json["choices"][0]["message"]["annotations"] == [
        {
            "type": "url_citation",
            "url_citation": {
                "url": "https://example.org/tower",
                "title": "Notes",
                "start_index": 8,
                "end_index": 11,
            },
        }
    ]


async def test_an_answer_of_nothing_but_mentions_gets_a_bounded_number_of_annotations() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(3.0))
    async with gateway_of(retrieval=scripted.retrieval, generalist=answer("[1]" * 20_000)) as gateway:
        response = await gateway.chat("general when was it built?")
    assert len(response.json["choices"][0]["message"]["annotations"]) == MAX_MENTIONS


async def test_a_shut_gate_asks_neither_encoder_nor_store_and_changes_no_byte() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(-9.0))
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        response = await gateway.chat("general hello")
    assert response.headers["x-coe-retrieval"] == "skipped"
    assert (scripted.encoder.encoded, scripted.retriever.searches) == (0, 0)
    assert said(gateway) == "general hello"


async def test_a_small_expert_with_passages_goes_before_a_large_one_without() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of({("code", "painter"): 6.0}, up=1.2))
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        with_ = await gateway.chat("code it")
        without = await asked(gateway, "off", "code it")
    assert (with_.headers["x-coe-expert"], without.headers["x-coe-expert"]) == ("painter", "coder")
    assert with_.headers["x-coe-retrieval"].startswith("used")


@pytest.mark.parametrize("how", ["away", "nothing", "unlike"])
async def test_where_the_passages_do_not_come_the_decision_is_made_without_them(how: str) -> None:
    found = [passage(TOWER, score=0.05)] if how == "unlike" else []
    scripted = ScriptedRetrieval(*found, gate=gate_of({("code", "painter"): 6.0}, up=1.2))
    scripted.retriever.fails = RetrievalError("the store is away") if how == "away" else None
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        response = await gateway.chat("code it")
    assert response.status == 200
    assert response.headers["x-coe-expert"] == "coder"
    assert response.headers["x-coe-retrieval"] == ("failed" if how == "away" else "empty")


async def test_a_store_that_is_late_costs_its_deadline_once_and_is_then_left_alone_for_a_while() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(3.0), timeout=0.5)
    scripted.retriever.waits = asyncio.Event()
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        first, second = await asked(gateway, "on"), await asked(gateway, "on")
        assert scripted.retriever.searches == 1
        scripted.now += 60
        scripted.retriever.waits.set()
        scripted.retrieval._declared = RetrievalSpec(timeout=60.0)  # for a busy machine
        third = await asked(gateway, "on")
        page = await gateway.post("/metrics", method="GET")
    assert [r.headers["x-coe-retrieval"][:6] for r in (first, second, third)] == ["failed", "failed", "used; "]
    assert {r.status for r in (first, second, third)} == {200}
    assert b'coe_retrieval_total{result="failed"} 2' in page.body


async def test_a_tenant_sees_only_its_own_and_shared_documents() -> None:
    keys = [key_of(tenant, tenant=tenant).model_dump(mode="json") for tenant in ("acme", "zeta")]
    scripted = ScriptedRetrieval(gate=gate_of(3.0))
    scripted.retriever.own = {"acme": [passage("Acme's secret.")]}
    async with gateway_of(registry_of(access={"keys": keys}), retrieval=scripted.retrieval) as gateway:
        for tenant, state in (("zeta", "empty"), ("acme", "used")):
            response = await asked(gateway, "on", key=tenant)
            assert response.headers["x-coe-retrieval"].startswith(state)
            assert ("secret" in said(gateway)) == (tenant == "acme")


async def test_the_expert_that_stands_in_gets_the_passages_too() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(3.0))
    fails = ExpertUnavailable("down", expert="generalist")
    async with gateway_of(retrieval=scripted.retrieval, generalist=fails) as gateway:
        response = await gateway.chat("general when?")
    assert response.headers["x-coe-reason"] == "fallback"
    assert TOWER in said(gateway, response.headers["x-coe-expert"])


async def test_a_stream_begins_with_a_chunk_that_names_the_sources() -> None:
    scripted = ScriptedRetrieval(passage(TOWER, title="Tower"), gate=gate_of(3.0))
    chunk = b'data: {"id":"c1","created":5,"model":"m","choices":[{"index":0,"delta":{"content":"1889"}}]}\n\n'
    script = (chunk, b"data: [DONE]\n\n")
    async with gateway_of(retrieval=scripted.retrieval, generalist=script) as gateway:
        response = await gateway.chat("general when?", stream=True)
    first, *rest = events(response.body)
    assert (first["id"], first["created"], first["object"]) == ("c1", 5, "chat.completion.chunk")
    (source,) = first["choices"][0]["delta"]["annotations"]
    assert source["file_citation"]["filename"] == "Tower"
    assert response.body.endswith(b"".join(script))
    assert len(rest) == 1


def events(body: bytes) -> list[Any]:
    lines: Sequence[bytes] = body.splitlines()
    return [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
