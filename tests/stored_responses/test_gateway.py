"""Answers that clients refer to, through the whole gateway in process, with OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from coe.core import Call, Reply
from gateway.request import admission, stored_step
from gateway.shared_store import SqliteStore
from tests.access.samples import key_of
from tests.experts.translation.chat_expert import ChatExpert, ChatReply
from tests.stored_responses.served import declared, served

pytestmark = pytest.mark.anyio


async def test_a_translated_answer_is_continued_read_and_deleted(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        first = await one.client.responses.create(model="auto", input="general: capital?", instructions="Be brief.")
        second = await one.client.responses.create(model="auto", input="And?", previous_response_id=first.id)
        assert one.sent == [("user", "general: capital?"), ("assistant", "Paris."), ("user", "And?")]
        assert second.previous_response_id == first.id
        third = await one.client.responses.create(model="generalist", input="Go on", previous_response_id=second.id)
        assert [text for _, text in one.sent] == ["general: capital?", "Paris.", "And?", "Paris.", "Go on"]
        read = await one.client.responses.retrieve(second.id)
        assert read.model_dump() == second.model_dump()
        await one.client.responses.delete(second.id)
        for gone in (second.id, "resp_unknown"):
            with pytest.raises(openai.NotFoundError, match="has expired, was deleted") as missing:
                await one.client.responses.retrieve(gone)
            assert missing.value.code == "response_not_found"
        with pytest.raises(openai.NotFoundError):
            await one.client.responses.delete(second.id)
        with pytest.raises(openai.BadRequestError, match="send the conversation in `input`") as lost:
            await one.client.responses.create(model="auto", input="x", previous_response_id=third.id)
        assert (lost.value.code, lost.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_items_are_referred_to_as_the_ai_sdk_does(tmp_path: Path) -> None:
    call = {"index": 0, "id": "call_0", "function": {"name": "look", "arguments": "{}"}}
    registry = declared()
    async with served(tmp_path, registry, {"reasoning": "hm"}, {"tool_calls": [call]}) as one:
        tool: Any = {"type": "function", "name": "look", "parameters": {}}
        first = await one.client.responses.create(model="generalist", input="look", tools=[tool])
        items: Any = [
            {"role": "user", "content": "look"},
            *({"type": "item_reference", "id": item.id} for item in first.output),
            {"type": "function_call_output", "call_id": "call_0", "output": "seen"},
        ]
        second = await one.client.responses.create(model="generalist", input=items, tools=[tool])
        user, assistant, result = one.chat.calls[-1].fields["messages"]
        assert assistant["tool_calls"][0]["function"]["name"] == "look"
        assert (user["content"], result["content"]) == ("look", "seen")
        more: Any = {"previous_response_id": second.id, "tools": [tool]}
        await one.client.responses.create(model="generalist", input="and?", **more)
        assert [message["role"] for message in one.chat.calls[-1].fields["messages"]] == [
            *("user", "assistant", "tool", "assistant", "user"),
        ]
        unknown: Any = [{"type": "item_reference", "id": "msg_unknown"}]
        with pytest.raises(openai.BadRequestError, match="no item 'msg_unknown' is stored") as missing:
            await one.client.responses.create(model="generalist", input=unknown)
        assert missing.value.code == "item_not_found"


async def test_an_answer_with_store_false_is_not_stored(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        first = await one.client.responses.create(model="auto", input="hi")
        hidden = await one.client.responses.create(model="auto", input="x", previous_response_id=first.id, store=False)
        assert (hidden.store, len(one.sent)) == (False, 3)
        with pytest.raises(openai.NotFoundError):
            await one.client.responses.retrieve(hidden.id)


async def test_keys_and_tenants_are_separate(tmp_path: Path) -> None:
    keys = [
        key_of("alice", tenant="acme"),
        key_of("bob", tenant="acme"),
        key_of("carol"),
    ]
    registry = declared(access={"keys": [key.model_dump() for key in keys]})
    async with served(tmp_path, registry) as one:
        clients = {name: one.client.with_options(api_key=name) for name in ("alice", "bob", "carol")}
        first = await clients["alice"].responses.create(model="generalist", input="hi")
        assert (await clients["bob"].responses.retrieve(first.id)).id == first.id
        with pytest.raises(openai.NotFoundError):
            await clients["carol"].responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            await clients["carol"].responses.delete(first.id)
        with pytest.raises(openai.BadRequestError):
            await clients["carol"].responses.create(model="generalist", input="x", previous_response_id=first.id)
        item: Any = [{"type": "item_reference", "id": first.output[0].id}]
        with pytest.raises(openai.BadRequestError):
            await clients["carol"].responses.create(model="generalist", input=item)


@pytest.mark.parametrize("store", ["sqlite", "none"])
async def test_with_keys_an_experts_server_gets_no_id_of_what_it_stores(tmp_path: Path, store: str) -> None:
    """All callers share the operator's key at the server, which knows what any of them stored and deleted here."""
    registry = declared(store, access={"keys": [key_of("alice").model_dump(), key_of("mallory").model_dump()]})
    async with served(tmp_path, registry) as one:
        alice, mallory = (one.client.with_options(api_key=name) for name in ("alice", "mallory"))
        first = await alice.responses.create(model="coder", input="hi")
        if store != "none":
            second = await alice.responses.create(model="coder", input="more", previous_response_id=first.id)
            assert second.output_text == "answer 2"
            await alice.responses.delete(first.id)
        calls = len(one.native.calls)
        item: Any = [{"type": "item_reference", "id": first.output[0].id}]
        for client in (alice, mallory):
            for fields in ({"previous_response_id": first.id}, {"input": item}, {"conversation": "conv_1"}):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.responses.create(**{"model": "coder", "input": "x", **fields})
                assert refused.value.param == next(iter(fields))
        assert len(one.native.calls) == calls


async def test_gateways_share_a_file_and_a_redis(tmp_path: Path, redis_url: str) -> None:
    for store in ("sqlite", redis_url):
        async with served(tmp_path, declared(store)) as one, served(tmp_path, declared(store)) as other:
            first = await one.client.responses.create(model="auto", input="hi")
            second = await other.client.responses.create(model="auto", input="x", previous_response_id=first.id)
            assert (await one.client.responses.retrieve(second.id)).previous_response_id == first.id


async def test_a_store_that_is_away_fails_only_what_needs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path, declared("redis://127.0.0.1:1/0")) as one:
        assert (await one.client.responses.create(model="auto", input="hi")).output_text == "Paris."
        assert "; answers can neither be stored nor read" in caplog.text
        with pytest.raises(openai.InternalServerError) as away:
            await one.client.responses.create(model="auto", input="x", previous_response_id="resp_1")
        assert away.value.status_code == 503
        assert away.value.code == "responses_unavailable"
        assert away.value.response.headers["retry-after"] == "1"
        with pytest.raises(openai.InternalServerError):
            await one.client.responses.retrieve("resp_1")


async def test_repeated_references_and_long_histories_are_refused_before_they_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = SqliteStore.get

    async def get(store: SqliteStore, names: Sequence[str], *, group: str = "") -> list[bytes | None]:
        fetched.extend(names)
        return await fetch(store, names, group=group)

    registry = declared(limits={"max_body_mb": 0.05})
    async with served(tmp_path, registry, {"content": "x" * 9_000}) as one:
        first = await one.client.responses.create(model="generalist", input="hi")
        last = first
        for _ in range(3):
            last = await one.client.responses.create(model="generalist", input="hi", previous_response_id=last.id)
        monkeypatch.setattr(SqliteStore, "get", get)
        reference: Any = {"type": "item_reference", "id": first.output[0].id}
        assert (await one.client.responses.create(model="generalist", input=[reference] * 4)).output_text
        assert [text for _, text in one.sent] == ["x" * 9_000] * 4
        fetched.clear()
        with pytest.raises(openai.APIStatusError, match=r"more than 0\.05 MiB") as long:
            await one.client.responses.create(model="generalist", input=[reference] * 6)
        assert (long.value.status_code, fetched) == (413, [])
        with pytest.raises(openai.APIStatusError, match=r"more than 0\.05 MiB"):
            await one.client.responses.create(model="generalist", input="z" * 25_000, previous_response_id=last.id)
        assert fetched == [f"r:{last.id}"]
        monkeypatch.setattr(stored_step, "MAX_REFERENCES", 300)
        with pytest.raises(openai.BadRequestError, match="more than 300 references") as many:
            await one.client.responses.create(model="generalist", input=[{**reference, "id": "x"}] * 301)
        assert many.value.param == "input"


async def test_a_stored_conversation_has_the_largest_number_of_json_values_of_a_body(tmp_path: Path) -> None:
    async with served(tmp_path, declared(limits={"max_json_values": 1_000})) as one:
        items: Any = [{"role": "user", "content": "hi"}] * 40
        first = await one.client.responses.create(model="generalist", input=items)
        second = await one.client.responses.create(model="generalist", input=items, previous_response_id=first.id)
        with pytest.raises(openai.BadRequestError, match="more than 1000 JSON values") as many:
            await one.client.responses.create(model="generalist", input="x", previous_response_id=second.id)
        assert many.value.code == "too_many_values"


async def test_a_stored_conversation_takes_the_memory_of_large_bodies_until_the_expert_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = declared(limits={"max_body_mb": 0.2, "body_memory_mb": 1})
    for module in (admission, stored_step):
        monkeypatch.setattr(module, "SMALL_BODY", 1_000)
    held: list[int] = []
    call, chunks = ChatExpert.stream, ChatReply.chunks

    async with served(tmp_path, registry) as one:
        state = one.gateway.services

        async def stream(expert: ChatExpert, sent: Call) -> Reply:
            held.append(state.admission.body_memory)
            return await call(expert, sent)

        async def answering(reply: ChatReply) -> AsyncGenerator[bytes, None]:
            async for chunk in chunks(reply):
                yield chunk
            held.append(state.admission.body_memory)

        first = await one.client.responses.create(model="generalist", input="x" * 5_000)
        second = await one.client.responses.create(model="generalist", input="y" * 5_000, previous_response_id=first.id)
        monkeypatch.setattr(ChatExpert, "stream", stream)
        monkeypatch.setattr(ChatReply, "chunks", answering)
        body = {"model": "generalist", "input": "hi", "previous_response_id": second.id, "stream": True}
        assert (await one.gateway.post("/v1/responses", orjson.dumps(body))).status == 200
        assert held[0] > 20_000
        assert held[1] < 200  # only the input, which waits for its storage
        assert state.admission.body_memory == 0


async def test_lone_surrogates_are_stored_continued_read_and_deleted_at_azures_paths(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        one.native.text = "x \ud800"
        body = b'{"model": "coder", "input": "hi"}'
        first = await one.gateway.post("/openai/responses", body)
        assert first.status == 200
        name = json.loads(first.body)["id"]
        more = b'{"model": "generalist", "input": "hi", "previous_response_id": "%b"}' % name.encode()
        assert (await one.gateway.post("/v1/responses", more)).status == 200
        for prefix in ("/openai", "/openai/v1", "/v1"):
            read = await one.gateway.post(f"{prefix}/responses/{name}", method="GET")
            assert (read.status, json.loads(read.body)["output"][0]["content"][0]["text"]) == (200, "x \ud800 1")
        deleted = await one.gateway.post(f"/openai/v1/responses/{name}", method="DELETE")
        assert (deleted.status, deleted.json["deleted"]) == (200, True)


@pytest.mark.parametrize("wrong", [5, "", "x" * 201, ["resp_1"]])
async def test_an_id_that_is_none_is_refused(tmp_path: Path, wrong: Any) -> None:
    async with served(tmp_path) as one:
        body = {"model": "auto", "input": "hi", "previous_response_id": wrong}
        response = await one.gateway.post("/v1/responses", orjson.dumps(body))
        assert (response.status, response.error["param"]) == (400, "previous_response_id")
        reference = {"model": "auto", "input": [{"type": "item_reference", "id": wrong}]}
        response = await one.gateway.post("/v1/responses", orjson.dumps(reference))
        assert (response.status, response.error["message"]) == (
            400,
            "an item_reference in input must have the id of an item",
        )
