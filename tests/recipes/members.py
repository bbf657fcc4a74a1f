"""Fake members of recipes, their answers, and recipes of them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import orjson

from coe.core import Call, Chunks, Expert, Reply
from coe.errors import ExpertRejected
from coe.experts.translation.expert import TranslatedExpert
from coe.planning import Assignment
from coe.planning.problem import declared_assignment
from coe.recipes.expert import RecipeExpert
from coe.recipes.policy import default_policy
from coe.registry import ExpertSpec, Policy, RecipeSpec, Registry
from coe.usage import RecipeLog
from tests.fakes import ScriptedExpert, ScriptedReply

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


def final_answer(text: str) -> str | None:
    """The last word, unless there is none or more than five."""
    words = text.split()
    return words[-1] if 0 < len(words) <= 5 else None


class NewerLimitExpert(ScriptedExpert):
    """Refuses `max_tokens`, as OpenAI's newer models do."""

    async def stream(self, call: Call) -> ScriptedReply:
        if "max_tokens" in call.fields:
            self.calls.append(call)
            text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            raise ExpertRejected(text, expert=self.name, status=400, param="max_tokens")
        return await super().stream(call)


def translated(expert: Expert, **declared: Any) -> TranslatedExpert:
    """The expert as a recipe has it, behind the translation of other APIs."""
    spec = {"name": expert.name, "model": "m", "runtime": "external", "base_url": "http://h/v1", **declared}
    return TranslatedExpert(expert, ExpertSpec.model_validate(spec))


def recipe_of(*members: Expert, limits: dict[str, Any] | None = None, **declared: Any) -> RecipeExpert:
    spec = RecipeSpec.model_validate({"name": "careful", **declared})
    return RecipeExpert(
        "careful",
        {member.name: member for member in members},
        policy=default_policy(spec, categories=CATEGORIES),
        categories=CATEGORIES,
        final_answer=final_answer,
        limits=Policy.model_validate(limits or {}),
    )


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
        price=_with_one_more(before.price),
        choice=before.choice,
        hosted=(*before.hosted, arm),
        duals={},
    )


def _with_one_more(price: Any) -> Any:
    """The prices with a free column more."""
    return np.concatenate((price, np.zeros_like(price[..., :1])), axis=-1)
