"""Recipes on real ports: real member servers, the gateway in a process of its own, and real clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.served import Served, chat, serving
from tests.recipes.member_server import INPUT_TOKENS, MemberServer

pytestmark = pytest.mark.anyio
CAREFUL = {"name": "careful", "cascade": [["a", "b"], "large"]}


@asynccontextmanager
async def recipes_of(
    folder: Path, *members: MemberServer, recipe: dict[str, Any] = CAREFUL, **policy: Any
) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        for member in members:
            await member.start()
            stack.push_async_callback(member.kill)
        experts = [{"name": one.name, "model": one.name, "runtime": "external", "base_url": one.url} for one in members]
        changes = {
            "experts": experts,
            "assignment": {"general": members[0].name},
            "recipes": [recipe],
            "policy": {"max_attempts": 1, **policy},
        }
        yield await stack.enter_async_context(serving(folder, **changes))


def body(*, stream: bool, model: str = "careful") -> dict[str, Any]:
    return {**chat(model, stream=stream), "stream_options": {"include_usage": True}}


async def send_chat(served: Served, *, stream: bool, model: str = "careful") -> tuple[int, bytes, dict[str, str]]:
    asked = body(stream=stream, model=model)
    async with served.client.post(f"{served.url}/v1/chat/completions", json=asked) as response:
        answer = (await response.read()).replace(b'"cost":0.0,', b"")  # the one thing that a stream gains
        return response.status, answer, dict(response.headers)


async def test_the_answer_is_one_members_bytes_and_usage_is_the_sum(tmp_path: Path) -> None:
    a, b, large = MemberServer("a", "7"), MemberServer("b", "8"), MemberServer("large", "The answer is 8.")
    async with recipes_of(tmp_path, a, b, large) as served:
        status, answer, headers = await send_chat(served, stream=True)
        assert status == 200
        assert answer == b.sent[0]
        assert (headers["x-coe-expert"], headers["x-coe-steps"], headers["x-coe-calls"]) == ("b", "2", "3")
        (record,) = await served.records(1)
        assert (record.input_tokens, record.output_tokens) == (3 * INPUT_TOKENS, 1 + 1 + 4)
        assert [(call.expert, call.output_tokens) for call in record.steps] == [("a", 1), ("b", 1), ("large", 4)]
        assert (record.recipe_stop, record.outcome) == ("last_step", "ok")


async def test_a_member_that_is_killed_mid_run_causes_no_error(tmp_path: Path) -> None:
    a, b = MemberServer("a", "7", pause=0.002), MemberServer("b", "8", pause=0.002)
    large = MemberServer("large", "After some thought: The answer is 8.", pause=0.005)
    async with recipes_of(tmp_path, a, b, large, max_stream_hold=60) as served:

        async def client(number: int) -> list[tuple[int, bytes]]:
            found = []
            for turn in range(12):
                status, answer, _ = await send_chat(served, stream=(number + turn) % 2 == 0)
                found.append((status, answer))
            return found

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        while large.seen < 20:
            await asyncio.sleep(0.005)
        await large.kill()
        answers = [one for found in await asyncio.gather(*clients) for one in found]
        assert {status for status, _ in answers} == {200}
        assert [answer for _, answer in answers if b'"error"' in answer] == []
        whole = {*a.sent, *b.sent, *large.sent}
        assert {answer for _, answer in answers} <= whole
        records = await served.records(len(answers))
        assert {record.outcome for record in records} == {"ok"}
        stops = {record.recipe_stop for record in records}
        assert stops == {"last_step", "unavailable"}
        unverified = [record for record in records if record.recipe_stop == "unavailable"]
        assert all("unverified" in [call.outcome for call in record.steps] for record in unverified)
