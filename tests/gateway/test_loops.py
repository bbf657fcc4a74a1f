"""A loop of tool calls stays with the expert that began it, in each API, whatever the tools return."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import orjson
import pytest

from coe.errors import ExpertUnavailable
from coe.registry import Registry
from gateway.dialects.chat import CHAT
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES
from tests.fakes import Gateway, ScriptedExpert, gateway_of, registry_of

pytestmark = pytest.mark.anyio

LOOPS = 300
APIS = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
TASKS = ("code a parser for dates", "art: paint a harbour at dusk", "general question about trains", "ponder this")
RESULTS = ("code code code", "Error: no such file", "an art review of the harbour", "general notes", "")
DOCUMENT = "# AGENTS.md\n\n## Style\n" + "Paint art with care and general patience. " * 20 + "\n\n## Tests\nRun all.\n"
EXPERTS = {"code": "coder", "art": "painter", "general": "generalist"}


class Loop:
    """A conversation of one client: a task, then steps with one or two tool calls each."""

    def __init__(self, number: int, api: str) -> None:
        self.random = random.Random(number)
        self.number, self.api = number, api
        self.steps: list[tuple[str, list[tuple[str, str]]]] = []
        """The text of each answer, and the id and result of each of its calls."""
        task = self.random.choice(TASKS)
        self.opening = [DOCUMENT, task] if number % 2 else [f"<environment>Day {number}</environment>", task]
        self.turns: list[str] = []
        """Turns of the user after the task, each followed by a step."""
        self.fields: dict[str, Any] = {"prompt_cache_key": f"key {number % 7}"} if number % 3 == 0 else {}
        if api == "messages" and number % 5 == 0:
            self.fields["metadata"] = {"user_id": f"user {number % 11}"}

    def step(self) -> None:
        calls = range(self.random.choice((1, 1, 2)))
        ids = [f"call_{self.number}_{len(self.steps)}_{index}" for index in calls]
        self.steps.append(
            (self.random.choice(("", "Let me see.")), [(one, self.random.choice(RESULTS)) for one in ids])
        )

    def body(self) -> bytes:
        clock = f"You are an agent. It is {self.random.randrange(24)}:{self.random.randrange(60)}."
        return orjson.dumps({"model": "auto", **self.fields, **getattr(self, f"_{self.api}")(clock)})

    def _chat(self, clock: str) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": clock}]
        messages += [{"role": "user", "content": text} for text in self.opening]
        for said, calls in self.steps:
            named = [{"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} for one, _ in calls]
            messages.append({"role": "assistant", "content": said or None, "tool_calls": named})
            messages += [{"role": "tool", "tool_call_id": one, "content": result} for one, result in calls]
        return {"messages": messages}

    def _messages(self, clock: str) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "\n".join(self.opening)}]
        for said, calls in self.steps:
            blocks = [{"type": "tool_use", "id": one, "name": "f", "input": {}} for one, _ in calls]
            messages.append(
                {"role": "assistant", "content": [*([{"type": "text", "text": said}] if said else []), *blocks]}
            )
            results = [{"type": "tool_result", "tool_use_id": one, "content": result} for one, result in calls]
            reminder = {"type": "text", "text": "<system-reminder>Mind the art.</system-reminder>"}
            messages.append({"role": "user", "content": [*results, reminder]})
        return {"system": clock, "messages": messages, "max_tokens": 5}

    def _responses(self, clock: str) -> dict[str, Any]:
        items: list[dict[str, Any]] = [{"role": "user", "content": text} for text in self.opening]
        for said, calls in self.steps:
            items.append({"type": "reasoning", "summary": []})
            if said:
                items.append(
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}
                )
            named = [{"type": "function_call", "call_id": one, "name": "f", "arguments": "{}"} for one, _ in calls]
            results = [{"type": "function_call_output", "call_id": one, "output": result} for one, result in calls]
            pairs = zip(named, results, strict=True)
            items += [one for pair in pairs for one in pair] if self.number % 2 else [*named, *results]
        return {"instructions": clock, "input": items}


def declared(**policy: Any) -> Registry:
    """Experts that all take tools, as a request with the history of a loop needs them."""
    experts = [one.model_dump(mode="json") | {"capabilities": ["tools"]} for one in registry_of().experts]
    return registry_of(experts=experts, policy=policy)


async def sent(gateway: Gateway, loop: Loop) -> str:
    response = await gateway.post(PATHS[loop.api], loop.body())
    assert response.status == 200, response.body
    return response.headers["x-coe-expert"]


async def run(gateway: Gateway, loop: Loop, *, steps: int) -> list[str]:
    """The expert of each step. In every fourth loop the first choice fails the first step and then recovers."""
    failing: list[ScriptedExpert] = []
    if loop.number % 4 == 0:
        choice = next((name for word, name in EXPERTS.items() if word in loop.opening[1]), "generalist")
        failing.append(gateway.experts[choice])
    scripts = [(one, one.script) for one in failing]
    for one in failing:
        one.script = ExpertUnavailable("down", expert=one.name)
    found = [await sent(gateway, loop)]
    for one, script in scripts:
        one.script = script
    assert not failing or found[0] != failing[0].name
    for _ in range(steps):
        loop.step()
        found.append(await sent(gateway, loop))
    return found


async def test_no_loop_changes_its_expert() -> None:
    policy = {"sticky_margin": 0.0, "exploration": {"rate": 0.5, "max_quality_loss": 1.0}}
    switched, apis = list[tuple[int, list[str]]](), tuple(APIS)
    async with gateway_of(declared(**policy)) as gateway:
        for number in range(LOOPS):
            loop = Loop(number, apis[number % 3])
            found = await run(gateway, loop, steps=1 + number % 3)
            if len(set(found)) > 1:
                switched.append((number, found))
        reasons = Counter(record.reason for record in gateway.records)
    assert switched == []
    assert reasons["fallback"] > LOOPS / 20
    assert reasons["explored"] > LOOPS / 20


async def test_an_open_loop_neither_spills_nor_explores_but_leaves_an_expert_that_fails() -> None:
    async with gateway_of(declared(max_quality_loss=1.0)) as gateway:
        loop = Loop(1, "chat")
        begun = await sent(gateway, loop)
        expert = gateway.experts[begun]
        expert.health = type(expert.health)(load=2.0)
        loop.step()
        assert await sent(gateway, loop) == begun
        expert.script = ExpertUnavailable("down", expert=begun)
        loop.step()
        replaced = await sent(gateway, loop)
        assert replaced != begun
        expert.script, expert.health = (b"{}",), type(expert.health)()
        loop.step()
        assert await sent(gateway, loop) == replaced
