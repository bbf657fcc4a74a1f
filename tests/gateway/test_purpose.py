"""Requests of CoE's own commands are marked by `x-coe-purpose`, which only administrators' keys may set."""

from __future__ import annotations

import orjson
import pytest

from coe.errors import ExpertUnavailable
from gateway.observability import observers
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

TEXT = "write me some code that draws a small blue house"
KEYS = registry_of(
    access={
        "keys": [
            key_of("boss", scopes=("chat", "admin")).model_dump(),
            key_of("alice", limits={"requests_per_minute": 2}).model_dump(),
        ]
    }
)


async def send_chat(
    gateway: Gateway, purpose: str | None, *, key: str | None = None, path: str = "", model: str = "auto"
) -> Response:
    headers = {"content-type": "application/json"}
    headers |= {"x-coe-purpose": purpose} if purpose is not None else {}
    headers |= {"x-api-key": key} if key else {}
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": TEXT}]})
    return await gateway.post(path or "/v1/chat/completions", body, headers=headers)


async def test_without_keys_a_command_is_taken_at_its_word() -> None:
    async with gateway_of() as gateway:
        for purpose in (None, "score", "chat"):
            assert (await send_chat(gateway, purpose)).status == 200
        assert [record.purpose for record in gateway.records] == ["", "score", "chat"]


@pytest.mark.parametrize("purpose", ["", "user", "Score", "score,chat", "score" * 1000, "\xff"])
async def test_an_unknown_purpose_is_refused_by_the_name_of_the_header(purpose: str) -> None:
    async with gateway_of() as gateway:
        answer = await send_chat(gateway, purpose)
        assert (answer.status, answer.error["param"]) == (400, "x-coe-purpose")
        assert "score, chat" in answer.error["message"]


async def test_an_ordinary_key_cannot_mark_its_requests_and_is_limited_all_the_same() -> None:
    async with gateway_of(KEYS) as gateway:
        statuses = [(await send_chat(gateway, "score", key="alice")).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await send_chat(gateway, "score", key="boss")).status == 200
        found = [(record.key, record.purpose, record.outcome) for record in gateway.records]
        assert found[:2] == [("alice", "", "ok")] * 2
        assert found[2][:2] == ("alice", "")
        assert found[3] == ("boss", "score", "ok")


@pytest.mark.parametrize(("purpose", "sent"), [("score", 1), (None, 3)])
async def test_a_request_for_a_score_is_sent_once(purpose: str | None, sent: int) -> None:
    async with gateway_of(coder=ExpertUnavailable("lost", expert="coder")) as gateway:
        assert (await send_chat(gateway, purpose, model="coder")).status == 503
        assert gateway.records[0].attempts == sent


async def test_a_marked_request_is_no_implicit_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "MIN_REGENERATION_SECONDS", 0.0)
    async with gateway_of() as gateway:
        for purpose in ("score", "score", None, "score"):
            await send_chat(gateway, purpose)
    assert gateway.log.events == []
