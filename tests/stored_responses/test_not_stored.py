"""Answers that are not stored are counted with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway import stored_responses
from tests.access.samples import key_of
from tests.gateway.two_keys import bearer
from tests.stored_responses.served import Served, declared, served

pytestmark = pytest.mark.anyio

KEYS = [key_of("alice"), key_of("mallory"), key_of("admin", scopes={"admin", "chat"})]


def with_keys() -> Any:
    return declared(access={"keys": [key.model_dump(mode="json") for key in KEYS]})


async def metric(one: Served, name: str) -> str:
    page = await one.gateway.post("/metrics", method="GET", headers=bearer("admin"))
    return next((line.split()[1] for line in page.body.decode().splitlines() if line.startswith(name)), "")


@pytest.mark.parametrize("long", ["input", "answer", "answer in one piece"])
async def test_what_is_too_long_to_be_stored_is_counted(
    tmp_path: Path, long: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "MAX_ENTRY_BYTES", 2_000)
    async with served(tmp_path, with_keys(), {"content": "x" * (2_000 if long != "input" else 2)}) as one:
        alice = one.client.with_options(api_key="alice")
        text = "x" * 2_000 if long == "input" else "x"
        if long == "answer":
            body = orjson.dumps({"model": "generalist", "input": text, "stream": True})
            assert (await one.gateway.post("/v1/responses", body, headers=bearer("alice"))).status == 200
        else:
            answer = await alice.responses.create(model="generalist", input=text)
            with pytest.raises(openai.NotFoundError):
                await alice.responses.retrieve(answer.id)
        assert await metric(one, 'coe_responses_not_stored_total{reason="size"}') == "1.0"


async def test_a_store_that_is_away_is_counted(tmp_path: Path) -> None:
    async with served(tmp_path, declared("redis://127.0.0.1:1/0")) as one:
        await one.client.responses.create(model="auto", input="hi")
        page = (await one.gateway.post("/metrics", method="GET")).body
        assert b'coe_responses_not_stored_total{reason="store"} 1' in page
