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
COUNCIL = {"name": "council", "fuse": ["a", "b"], "by": "large"}
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
        return response.status, await response.read(), dict(response.headers)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_is_one_members_bytes_and_usage_is_the_sum(tmp_path: Path, stream: bool) -> None:
    a, b, large = MemberServer("a", "7"), MemberServer("b", "8"), MemberServer("large", "The answer is 8.")
    async with recipes_of(tmp_path, a, b, large) as served:
        status, answer, headers = await send_chat(served, stream=stream)
        assert status == 200
        assert answer == b.sent[0]
        assert (headers["x-coe-expert"], headers["x-coe-steps"], headers["x-coe-calls"]) == ("b", "2", "3")
        (record,) = await served.records(1)
        assert (record.input_tokens, record.output_tokens) == (3 * INPUT_TOKENS, 1 + 1 + 4)
        assert [(call.expert, call.output_tokens) for call in record.steps] == [("a", 1), ("b", 1), ("large", 4)]
        assert (record.recipe_stop, record.outcome) == ("last_step", "ok")


async def test_agreement_saves_the_large_member(tmp_path: Path) -> None:
    a, b, large = MemberServer("a", "It is 8."), MemberServer("b", "The answer is 8."), MemberServer("large", "9")
    async with recipes_of(tmp_path, a, b, large) as served:
        status, answer, headers = await send_chat(served, stream=True)
        assert (status, headers["x-coe-calls"], large.seen) == (200, "2", 0)
        assert answer in (a.sent[0], b.sent[0])


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


async def test_a_stream_of_a_slow_member_is_relayed_live_after_the_hold(tmp_path: Path) -> None:
    a, b = MemberServer("a", "seven seven"), MemberServer("b", "8", silent=True)
    a.may_end.clear()
    large = MemberServer("large", "8")
    async with recipes_of(tmp_path, a, b, large, max_stream_hold=0.1) as served:
        url = f"{served.url}/v1/chat/completions"
        async with asyncio.timeout(60), served.client.post(url, json=body(stream=True)) as response:
            begun = await response.content.readany()
            a.may_end.set()  # it is relayed before it is whole
            answer = begun + await response.read()
            assert (response.status, answer, response.headers["x-coe-expert"]) == (200, a.sent[0], "a")
        (record,) = await served.records(1)
        assert (record.recipe_stop, record.outcome) == ("stream_hold", "ok")
        assert [call.outcome for call in record.steps] == ["unverified", "cancelled"]
        assert record.first_token_ms is not None
        while not b.left:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_all_members(tmp_path: Path, stream: bool) -> None:
    a, b, large = (MemberServer(name, "8", silent=True) for name in ("a", "b", "large"))
    async with recipes_of(tmp_path, a, b, large) as served:
        request = asyncio.create_task(send_chat(served, stream=stream))
        while not (a.seen and b.seen):
            await asyncio.sleep(0.005)
        request.cancel()
        async with asyncio.timeout(60):
            while not (a.left and b.left):
                await asyncio.sleep(0.005)
        (record,) = await served.records(1)
        assert (record.outcome, record.recipe_stop, large.seen) == ("aborted", "cancelled", 0)


async def test_the_deadline_returns_the_held_answer_instead_of_an_error(tmp_path: Path) -> None:
    a, b, large = MemberServer("a", "7"), MemberServer("b", "8"), MemberServer("large", "8", silent=True)
    async with recipes_of(tmp_path, a, b, large) as served:
        url, headers = f"{served.url}/v1/chat/completions", {"x-coe-timeout": "3"}
        async with served.client.post(url, json=body(stream=False), headers=headers) as response:
            assert (response.status, await response.read()) == (200, a.sent[0])
        (record,) = await served.records(1)
        assert record.recipe_stop == "deadline"


async def test_without_any_member_the_client_gets_one_error(tmp_path: Path) -> None:
    members = [MemberServer(name, "8") for name in ("a", "b", "large")]
    async with recipes_of(tmp_path, *members) as served:
        for member in members:
            await member.kill()
        status, _, headers = await send_chat(served, stream=True)
        assert (status, headers["x-coe-expert"], headers["x-coe-cause"]) == (503, "careful", "connection_refused")


# ---------------------------------------------------------------------------------------------- recipes that write


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fuse_returns_the_bytes_of_the_member_that_writes(tmp_path: Path, stream: bool) -> None:
    a, b, large = (
        MemberServer("a", "It is 7."),
        MemberServer("b", "I say 8."),
        MemberServer("large", "Taken together 8"),
    )
    async with recipes_of(tmp_path, a, b, large, recipe=COUNCIL) as served:
        status, answer, headers = await send_chat(served, stream=stream, model="council")
        assert (status, answer) == (200, large.sent[0])
        assert (headers["x-coe-expert"], headers["x-coe-recipe"]) == ("large", "council")
        assert (headers["x-coe-steps"], headers["x-coe-calls"]) == ("2", "3")
        assert [one.bodies[0]["stream"] for one in (a, b, large)] == [False, False, stream]
        written = large.bodies[0]["messages"][-1]["content"]
        assert written.index("\nIt is 7.\n") < written.index("\nI say 8.\n")
        (record,) = await served.records(1)
        assert (record.expert, record.recipe_stop, record.outcome) == ("council", "last_step", "ok")
        assert [(call.expert, call.step, call.drafts, call.accepted) for call in record.steps] == [
            ("a", 0, 0, False),
            ("b", 0, 0, False),
            ("large", 1, 2, True),
        ]
        assert (record.input_tokens, record.output_tokens) == (3 * INPUT_TOKENS, 3 + 3 + 3)


async def test_a_fuse_whose_writer_is_killed_mid_run_returns_drafts_instead_of_errors(tmp_path: Path) -> None:
    a, b = MemberServer("a", "It is 7."), MemberServer("b", "I say 8.")
    large = MemberServer("large", "Taken together 8", pause=0.005)
    async with recipes_of(tmp_path, a, b, large, recipe=COUNCIL) as served:

        async def client() -> list[tuple[int, bytes]]:
            return [(await send_chat(served, stream=False, model="council"))[:2] for _ in range(12)]

        clients = [asyncio.create_task(client()) for _ in range(4)]
        while large.seen < 8:
            await asyncio.sleep(0.005)
        await large.kill()
        answers = [one for found in await asyncio.gather(*clients) for one in found]
        assert {status for status, _ in answers} == {200}
        assert {answer for _, answer in answers} <= {*a.sent, *b.sent, *large.sent}
        stops = {record.recipe_stop for record in await served.records(len(answers))}
        assert stops == {"last_step", "unavailable"}
        status, streamed, headers = await send_chat(served, stream=True, model="council")
        assert (status, headers["Content-Type"], headers["x-coe-expert"]) == (200, "text/event-stream", "a")
        assert b"It is 7." in streamed
        assert streamed.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_cancels_the_panel(tmp_path: Path) -> None:
    a, b, large = MemberServer("a", "7"), MemberServer("b", "8", silent=True), MemberServer("large", "8")
    async with recipes_of(tmp_path, a, b, large, recipe=COUNCIL) as served:
        request = asyncio.create_task(send_chat(served, stream=True, model="council"))
        while not (a.sent and b.seen):
            await asyncio.sleep(0.005)
        request.cancel()
        async with asyncio.timeout(60):
            while not b.left:
                await asyncio.sleep(0.005)
        (record,) = await served.records(1)
        assert (record.outcome, record.recipe_stop, large.seen) == ("aborted", "cancelled", 0)
        assert [call.outcome for call in record.steps] == ["answered", "cancelled"]
