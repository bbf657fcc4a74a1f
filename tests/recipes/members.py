"""Fake members of recipes, their answers, and recipes of them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import orjson

from coe.core import Call, Chunks, Expert, Reply
from coe.errors import ExpertUnavailable
from coe.planning.assignment import Assignment
from coe.planning.problem import declared_assignment
from coe.recipes.expert import RecipeExpert
from coe.recipes.policy import default_policy
from coe.registry import Policy, RecipeSpec, Registry
from coe.usage import RecipeLog
from tests.fakes import ScriptedExpert

CATEGORIES = 3
DONE = b"data: [DONE]\n\n"


def answer(text: str | None, *, finish: str | None = "stop", **message: Any) -> tuple[bytes, ...]:
    """A plain chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return (orjson.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}),)


def event(text: str | None = None, *, finish: str | None = None, **delta: Any) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {**({} if text is None else {"content": text}), **delta}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


def stream(*texts: str | asyncio.Event | BaseException, finish: str = "stop") -> tuple[Any, ...]:
    """A streamed chat answer; events and errors among the texts stay as they are."""
    return (*(event(text) if isinstance(text, str) else text for text in texts), event(finish=finish), DONE)


ESSAY = "one two three four five six " * 3
"""A free text without a final answer that can be compared."""


def recipe_of(*members: Expert, limits: dict[str, Any] | None = None, **declared: Any) -> RecipeExpert:
    spec = RecipeSpec.model_validate({"name": "careful", **declared})
    return RecipeExpert(
        "careful",
        {member.name: member for member in members},
        policy=default_policy(spec, categories=CATEGORIES),
        categories=CATEGORIES,
        limits=Policy.model_validate(limits or {}),
    )


def members(**scripts: object) -> list[ScriptedExpert]:
    return [ScriptedExpert(name, script) for name, script in scripts.items()]


def unavailable(name: str) -> ExpertUnavailable:
    return ExpertUnavailable(f"expert {name!r} is down", expert=name)


def call_of(*, stream: bool = False, log: RecipeLog | None = None, seconds: float = math.inf) -> Call:
    deadline = asyncio.get_running_loop().time() + seconds
    return Call({"messages": []}, stream, 10.0, 10.0, deadline=deadline, recipe_log=log or RecipeLog())


async def bytes_of(reply: Reply) -> bytes:
    """The whole reply, which is closed afterwards."""
    body = b"".join([chunk async for chunk in reply.chunks()])
    await reply.aclose()
    return body


async def next_chunk(chunks: Chunks) -> bytes:
    async with asyncio.timeout(60):
        return await anext(chunks)


def calls_of(log: RecipeLog) -> list[tuple[str, int, str, bool]]:
    """Expert, step, outcome and whether its answer was returned, of each call."""
    return [(call.expert, call.step, call.outcome, call.accepted) for call in log.calls]


def plan_with(arm: str, declared: Registry, *, quality: float) -> Assignment:
    """The declared assignment, and an arm with a measured quality for code."""
    before = declared_assignment(declared, ("code", "art", "general"))
    column = np.array([[quality], [-np.inf], [-np.inf]])
    return Assignment(
        categories=("code", "art", "general"),
        experts=(*before.experts, arm),
        quality=np.hstack((before.quality, column)),
        price=np.concatenate((before.price, np.zeros_like(before.price[..., :1])), axis=-1),
        choice=before.choice,
        hosted=(*before.hosted, arm),
        duals={},
    )
