"""The retrieval gate in the request path: when passages are added, how that is reported, and that it never fails a
request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest

from coe.artifacts.active_state import ActiveState, DocumentIndex
from coe.core import Prediction
from coe.errors import ExpertUnavailable, RetrievalError
from coe.registry.sections import RetrievalSpec
from coe.routing.request_text import RoutedText
from coe.settings import Settings
from gateway.main import open_parts
from gateway.process.reload import Reload, file_states, watched_files
from gateway.request.citations import MAX_MENTIONS
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway import words_server
from tests.retrieval.gates import FlatEncoder, ListRetriever, ScriptedRetrieval, gate_of, passage

pytestmark = pytest.mark.anyio

TOWER = "The tower was built in 1889."


def answer(text: str) -> tuple[bytes, ...]:
    return (orjson.dumps({"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}),)


async def asked(gateway: Gateway, consent: str, text: str = "general when?", **fields: Any) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    headers = {"content-type": "application/json", "x-coe-retrieval": consent}
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


async def test_without_a_store_nothing_is_consulted() -> None:
    async with gateway_of() as gateway:
        assert (await asked(gateway, "on")).headers["x-coe-retrieval"] == "none"


@pytest.mark.parametrize(
    ("score", "threshold", "by_default", "searches"),
    [(0.6, 0.6, "used", 1), (0.59, 0.6, "skipped", 1), (0.1, 0.6, "empty", 1), (0.9, 1.0, "none", 0)],
)
async def test_until_a_gate_is_fitted_the_best_passages_cosine_decides(
    score: float, threshold: float, by_default: str, searches: int
) -> None:
    passages = (passage("Another tower.", score=0.3), passage(TOWER, score=score))
    scripted = ScriptedRetrieval(*passages[score < 0.2 :], gate=None, default_similarity=threshold)
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        assert (await asked(gateway, "auto")).headers["x-coe-retrieval"].split(";")[0] == by_default
        assert scripted.retriever.searches == searches
        assert (TOWER in said(gateway)) == (by_default == "used")
        on = (await asked(gateway, "on")).headers["x-coe-retrieval"]
        assert on.split(";")[0] == ("empty" if score < 0.2 else "used")
        (first, _) = gateway.records
        assert (first.retrieval, first.gate, first.gain) == (by_default, None, None)


@pytest.mark.parametrize("fails", [None, RetrievalError("gone")])
async def test_the_store_is_searched_once_before_the_first_request(
    fails: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=None)
    scripted.retriever.fails = fails
    await scripted.retrieval.warm()
    assert (scripted.retriever.searches, scripted.encoder.encoded) == (1, 1)
    assert ("failed the first search: gone" in caplog.text) == (fails is not None)
    scripted.retriever.fails = None
    async with gateway_of(retrieval=scripted.retrieval) as gateway:  # a failure at the start is no back-off
        assert (await asked(gateway, "on")).headers["x-coe-retrieval"].startswith("used")


async def test_a_reload_replaces_the_state_while_the_store_of_a_new_index_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted, searched = ScriptedRetrieval(passage(TOWER), gate=None), asyncio.Event()

    async def hang(*_: Any, **__: Any) -> list[Any]:
        searched.set()
        return await asyncio.Event().wait() or []

    monkeypatch.setattr(scripted.retriever, "search", hang)
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        current = gateway.serving_state
        before, new = current.serving, replace(current.serving, versions={})

        def active(index: object) -> Any:
            return SimpleNamespace(registry=before.registry, consequences=(), index=index, declaration="")

        wiring: Any = SimpleNamespace(serving=lambda _: new, close_retired=AsyncMock(), issued=SimpleNamespace(keys=()))
        reload = Reload(
            current, settings=settings, in_use=active(None), wiring=wiring, read=lambda *_: active("another index")
        )
        states = file_states(watched_files(settings))
        async with reload.watching(since=states), asyncio.timeout(60):
            reload.request()
            await searched.wait()
            assert current.serving is new
            reload.request()  # the index is the same one, and the store still hangs
            current.replace(before)
            while current.serving is before:
                await asyncio.sleep(0.01)


async def test_the_retrieval_header_accepts_declared_values_only() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(-9.0))
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        assert (await asked(gateway, "on")).headers["x-coe-retrieval"].startswith("used")
        assert (await asked(gateway, "off")).headers["x-coe-retrieval"] == "off"
        wrong = await asked(gateway, "maybe")
    assert (wrong.status, wrong.error["param"]) == (400, "x-coe-retrieval")


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
    scripted = ScriptedRetrieval(gate=gate_of(3.0))
    scripted.retriever.own = {"acme": [passage("Acme's secret.")]}
    question = {"routed": RoutedText("general what?"), "prediction": Prediction(*uniform()), "tenant": None}
    async with gateway_of(retrieval=scripted.retrieval) as gateway:
        composition, options = gateway.serving_state.serving.composition, wishes_of("on")
        chat = chat_of("general what?")
        decision = composition.assign(chat, question["prediction"], options)
        other, _, nothing = await composition.retrieve(chat, decision, options, **question)
        own, _, found = await composition.retrieve(chat, decision, options, **{**question, "tenant": "acme"})
    assert (nothing.status, found.status) == ("empty", "used")
    assert "secret" not in repr(other.fields)
    assert "secret" in repr(own.fields)


async def test_passages_stay_within_what_the_experts_context_has_left() -> None:
    experts = [{**e.model_dump(exclude_none=True), "context_length": 400} for e in registry_of().experts]
    scripted = ScriptedRetrieval(passage("word " * 2000), gate=gate_of(3.0))
    async with gateway_of(registry_of(experts=experts), retrieval=scripted.retrieval) as gateway:
        roomy = await asked(gateway, "on", max_tokens=100)
        full = await asked(gateway, "on", max_tokens=390)
    assert roomy.headers["x-coe-retrieval"].startswith("used")
    assert len(said(gateway)) < len("word " * 2000)
    assert int(roomy.headers["x-coe-retrieval"].rpartition("=")[2]) <= 260
    assert full.headers["x-coe-retrieval"] == "empty"


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


async def test_a_stream_of_the_responses_api_annotates_each_text_when_it_is_done() -> None:
    text, place = "In 1889 [1].", {"item_id": "m1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "m1", "type": "message", "role": "assistant", "content": [part]}
    reported = [
        {"type": "response.output_text.delta", "delta": text, **place},
        {"type": "response.output_text.done", "text": text, **place},
        {"type": "response.content_part.done", "part": part, **place},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {"id": "r1", "output": [item]}},
    ]
    script = [
        b"event: %b\ndata: %b\n\n" % (one["type"].encode(), orjson.dumps({**one, "sequence_number": number}))
        for number, one in enumerate(reported)
    ]
    scripted = ScriptedRetrieval(passage(TOWER, source="https://example.org/tower"), gate=gate_of(3.0))
    async with gateway_of(
        retrieval=scripted.retrieval, generalist=(script[0], b"".join(script[1:4]), script[4])
    ) as gateway:
        body = {"model": "auto", "input": "general when?", "stream": True}
        response = await gateway.post("/v1/responses", orjson.dumps(body))
    assert response.body.startswith(script[0])
    found = events(response.body)
    assert [one["type"].removeprefix("response.") for one in found] == [
        *("output_text.delta", "output_text.annotation.added", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert [one["sequence_number"] for one in found] == list(range(6))
    cited = {"type": "url_citation", "url": "https://example.org/tower", "title": "Notes"}
    cited |= {"start_index": 8, "end_index": 11}
    assert found[1] == {
        "type": "response.output_text.annotation.added",
        "annotation": cited,
        "annotation_index": 0,
        "sequence_number": 1,
        **place,
    }
    assert found[3]["part"]["annotations"] == [cited]
    assert found[4]["item"]["content"][0]["annotations"] == [cited]
    assert found[5]["response"]["output"][0]["content"][0]["annotations"] == [cited]


async def test_an_answer_of_another_form_goes_as_it_came() -> None:
    scripted = ScriptedRetrieval(passage(TOWER), gate=gate_of(3.0))
    async with gateway_of(retrieval=scripted.retrieval, generalist=(b'{"choices":[{"odd":1}]}',)) as gateway:
        assert (await gateway.chat("general when?")).body == b'{"choices":[{"odd":1}]}'


def events(body: bytes) -> list[Any]:
    lines: Sequence[bytes] = body.splitlines()
    return [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


def uniform() -> tuple[Any, str]:
    import numpy as np

    return np.array([0.1, 0.1, 0.8], dtype=np.float32), "predict_fast"


def chat_of(text: str) -> Any:
    from gateway.dialects.chat import parse

    return parse(orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}))


def wishes_of(consent: Any) -> Any:
    from coe.core import RequestOptions

    return RequestOptions(retrieval=consent)


class Store(ListRetriever):
    """A document store with the methods that a gateway uses."""

    async def aclose(self) -> None: ...


async def test_a_gateway_warms_its_store_at_the_start_and_the_store_of_a_new_state(tmp_path: Path) -> None:
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(registry_of().model_dump(mode="json", exclude_none=True)))
    stores = [Store(), Store()]
    left = iter(stores)

    def read(settings: Settings, _: ActiveState | None = None) -> ActiveState:
        index: Any = DocumentIndex(next(left), FlatEncoder())  # type: ignore[arg-type]
        return replace(words_server.read(settings), index=index)

    async with open_parts(Settings.read({}, config=tmp_path / "experts.yaml"), read=read) as parts:
        assert [store.searches for store in stores] == [1, 0]
        assert parts.reload is not None
        parts.reload.request()
        async with asyncio.timeout(60):
            while not stores[1].searches:
                await asyncio.sleep(0.01)
