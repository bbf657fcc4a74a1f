"""Adaptation of a translation to its server: settings that it rejects, and item ids that it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from coe.core import Call
from coe.errors import ExpertRejected
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.experts.translation.chat_expert import ChatExpert, answer, translated
from tests.experts.translation.test_responses import TOOLS, call_delta

pytestmark = pytest.mark.anyio


async def test_a_setting_that_a_server_rejects_is_left_out_of_that_request_alone_and_reported() -> None:
    """OpenAI's newer models reject `reasoning_effort` together with tools only."""
    rejected = ExpertRejected("HTTP 400: Unrecognized request argument: reasoning_effort", expert="clever", status=400)
    chat = ChatExpert({"content": "hi"}, errors=[rejected])
    expert = translated(chat)
    dropped: list[set[str]] = [set(), set()]
    for names, tools in zip(dropped, (TOOLS, []), strict=True):
        call = replace(_call(reasoning={"effort": "low"}, tools=tools), dropped=names)
        async for _ in (await expert.stream(call)).chunks():
            pass
    assert [call.fields.get("reasoning_effort") for call in chat.calls] == ["low", None, "low"]
    assert dropped == [{"reasoning_effort"}, set()]


async def test_a_server_of_the_newer_name_of_the_limit_gets_that() -> None:
    text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    chat = ChatExpert({"content": "hi"}, errors=[ExpertRejected(text, expert="clever", status=400, param="max_tokens")])
    expert = translated(chat)
    for _ in range(2):
        await expert.stream(_call(max_output_tokens=7))
    assert [call.fields.get("max_completion_tokens") for call in chat.calls] == [None, 7, 7]


async def test_a_client_whose_text_a_server_quotes_changes_no_later_request() -> None:
    text = "HTTP 400: bad content: 'reasoning_effort verbosity max_completion_tokens'"
    chat = ChatExpert({"content": "hi"}, errors=[ExpertRejected(text, expert="clever", status=400)] * 4)
    expert = translated(chat)
    fields: dict[str, Any] = {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}, "max_output_tokens": 7}
    with pytest.raises(ExpertRejected):
        await expert.stream(_call(**fields))
    await expert.stream(_call(**fields))
    last = chat.calls[-1].fields
    assert (last["reasoning_effort"], last["verbosity"], last["max_tokens"]) == ("low", "low", 7)


async def test_a_server_that_ignores_the_newer_limit_keeps_the_older_one_whatever_its_errors_quote() -> None:
    text = "HTTP 400: max_tokens=99999 is too large for 'max_completion_tokens'"
    chat = ChatExpert({"content": "hi"}, errors=[ExpertRejected(text, expert="clever", status=400)])
    expert = translated(chat)
    await expert.stream(_call(max_output_tokens=99999))
    await expert.stream(_call(max_output_tokens=7))
    assert chat.calls[-1].fields["max_tokens"] == 7


@pytest.mark.parametrize("param", ["messages", "temperature"])
async def test_a_rejection_that_names_another_field_is_not_repeated(param: str) -> None:
    text = "HTTP 400: no: 'reasoning_effort max_completion_tokens'"
    chat = ChatExpert({}, errors=[ExpertRejected(text, expert="clever", status=400, param=param)])
    with pytest.raises(ExpertRejected):
        await translated(chat).stream(_call(reasoning={"effort": "low"}, max_output_tokens=7))
    assert len(chat.calls) == 1


async def test_another_rejection_is_not_repeated() -> None:
    chat = ChatExpert({"content": "hi"}, errors=[ExpertRejected("HTTP 400: no", expert="clever", status=400)])
    with pytest.raises(ExpertRejected):
        await translated(chat).stream(_call(reasoning={"effort": "low"}))
    assert len(chat.calls) == 1


def _call(**fields: Any) -> Call:
    return Call({"model": "auto", "input": "hi", **fields}, False, 5, 5, "responses")


async def test_apis_that_the_server_speaks_pass_unchanged() -> None:
    chat = ChatExpert({"content": "hi"})
    call = _call()
    await translated(chat, apis=["chat", "responses"]).stream(call)
    assert chat.calls == [call]


async def test_a_server_of_responses_gets_no_ids_that_it_does_not_know() -> None:
    deltas = [{"reasoning": "Hm."}, {"content": "Ah."}, *call_delta(0, "look", "{}"), *call_delta(1, "patch", "{}")]
    (answered,) = await answer(ChatExpert(*deltas), "responses", tools=TOOLS)
    own = {"type": "reasoning", "id": "rs_1", "summary": []}
    known: list[Any] = [{"role": "user", "content": "hi"}, own, {"type": "message", "id": "msg_1", "content": []}]
    accepted: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        items = (await request.json())["input"]
        if unknown := [item["id"] for item in items if item.get("id", "rs_1") not in ("rs_1", "msg_1")]:
            return web.json_response({"error": {"message": f"no item {unknown}"}}, status=400)
        accepted.extend(items)
        return web.json_response({"id": "resp_1", "object": "response", "output": []})

    app = web.Application()
    app.router.add_post("/v1/responses", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        declared = {"name": "native", "model": "m", "runtime": "external", "base_url": url, "apis": ["responses"]}
        async with Client() as session:
            expert = HttpExpert(ExpertSpec.model_validate(declared), Endpoint(url, "m"), session=session)
            reply = await expert.stream(_call(input=[*known, *answered["output"]]))
            await reply.aclose()
    finally:
        await runner.cleanup()
    assert accepted[:3] == known
    assert [item["type"] for item in accepted[3:]] == ["message", "function_call", "custom_tool_call"]
    assert [item.get("call_id") for item in accepted[4:]] == ["call_0", "call_1"]
