"""A session that is stuck goes to the next declared expert, once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.registry import Registry
from coe.routing.stuck import is_stuck
from gateway.dialects.chat import CHAT
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio

TASK = "code a parser for dates"
Step = tuple[str, str, str]
"""Tool, arguments and result."""
READ: Step = ("read_file", '{"path": "a.py"}', "def f(): ...")
FAIL: Step = ("run", '{"command": "make test"}', "Error: test 3 failed after 0.25 s")
LATER: Step = ("run", '{"command": "make test"}', "Error: test 3 failed after 1.5 s")
EDIT: Step = ("edit_file", '{"path": "a.py", "new": "x = 1"}', "ok")
SHELL: Step = ("shell", '{"command": "apply_patch <<EOF ..."}', "ok")


def chat_body(steps: list[Step]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": TASK}]
    for index, (name, arguments, result) in enumerate(steps):
        call = {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{index}", "content": result})
    return {"model": "auto", "messages": messages}


def messages_body(steps: list[Step]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": TASK}]
    for index, (name, arguments, result) in enumerate(steps):
        call = {"type": "tool_use", "id": f"c{index}", "name": name, "input": orjson.loads(arguments)}
        messages.append({"role": "assistant", "content": [call]})
        block = {"type": "tool_result", "tool_use_id": f"c{index}", "content": result}
        messages.append({"role": "user", "content": [block]})
    return {"model": "auto", "messages": messages, "max_tokens": 5}


def responses_body(steps: list[Step]) -> dict[str, Any]:
    items: list[dict[str, Any]] = [{"role": "user", "content": TASK}]
    for index, (name, arguments, result) in enumerate(steps):
        items.append({"type": "function_call", "call_id": f"c{index}", "name": name, "arguments": arguments})
        items.append({"type": "function_call_output", "call_id": f"c{index}", "output": result})
    return {"model": "auto", "input": items}


APIS = {"chat": (CHAT, chat_body), "messages": (MESSAGES, messages_body), "responses": (RESPONSES, responses_body)}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("steps", "stuck"),
    [
        ([], False),
        ([READ, READ, READ], False),
        ([FAIL, LATER], False),
        ([FAIL, READ, LATER, READ, FAIL], True),
        ([FAIL, FAIL, FAIL, READ], False),
        ([EDIT, FAIL], False),
        ([EDIT, FAIL, EDIT], True),
        ([SHELL, FAIL, SHELL], True),
        ([EDIT, ("edit_file", '{"path": "b.py", "new": "x = 1"}', "ok")], False),
    ],
)
def test_the_same_error_three_times_or_the_same_edit_twice_is_stuck(api: str, steps: list[Step], stuck: bool) -> None:
    dialect, body = APIS[api]
    assert is_stuck(dialect.parse(orjson.dumps(body(steps)))) is stuck


def declared(*names: str, **changes: Any) -> Registry:
    experts = [one.model_dump(mode="json") | {"capabilities": ["tools"]} for one in registry_of().experts]
    return registry_of(experts=experts, policy={"escalate_stuck_to": names}, **changes)


async def chosen(gateway: Gateway, steps: list[Step], *, key: str = "", **fields: Any) -> tuple[str, str]:
    headers = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
    response = await gateway.post("/v1/chat/completions", orjson.dumps(chat_body(steps) | fields), headers=headers)
    return response.headers["x-coe-expert"], response.headers["x-coe-reason"]


async def test_a_stuck_session_is_escalated_once_and_stays_there() -> None:
    steps: list[Step] = []
    async with gateway_of(declared("painter", "generalist")) as gateway:
        found = [await chosen(gateway, steps)]
        for step in (FAIL, LATER, FAIL, FAIL, EDIT, EDIT, READ):
            steps.append(step)
            found.append(await chosen(gateway, steps))
        assert gateway.records[3].reason == "escalated"
    assert found == [
        ("coder", "routed"),
        *[("coder", "sticky")] * 2,
        ("painter", "escalated"),
        *[("painter", "sticky")] * 4,
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ("coder", "sticky")),
        (("coder", "generalist"), ("generalist", "escalated")),
        (("painter", "coder"), ("coder", "sticky")),  # nothing better than the own expert
    ],
)
async def test_the_next_expert_of_the_list_continues(names: tuple[str, ...], expected: tuple[str, str]) -> None:
    async with gateway_of(declared(*names)) as gateway:
        await chosen(gateway, [])
        for count in (1, 2):
            await chosen(gateway, [FAIL] * count)
        assert await chosen(gateway, [FAIL] * 3) == expected
