"""pydantic-ai: an agent with a tool, over Chat Completions."""

import asyncio
from typing import Any

from program import KEY, PROMPTS, URL, report
from program import next_code as code
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent() -> Agent:
    """An agent of the running loop: its HTTP client belongs to one."""
    return Agent(OpenAIChatModel("auto", provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)))


async def chat() -> dict[str, Any]:
    return {"text": (await agent().run(PROMPTS["chat"])).output}


async def stream() -> dict[str, Any]:
    async with agent().run_stream(PROMPTS["stream"]) as answer:
        return {"pieces": [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]}


async def tools() -> dict[str, Any]:
    able = agent()

    @able.tool_plain
    def next_code(step: int) -> str:
        """Return the code of a step."""
        return code(step)

    return {"text": (await able.run(PROMPTS["tools"])).output}


async def cancel() -> dict[str, Any]:
    """Cancel the task that reads, as a web server does when its own client leaves."""
    pieces: list[str] = []
    arrived = asyncio.Event()

    async def read() -> None:
        async with agent().run_stream(PROMPTS["cancel"]) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)
                arrived.set()

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    return {"pieces": pieces[:1]}


with asyncio.Runner() as runner:
    report(
        chat=lambda: runner.run(chat()),
        stream=lambda: runner.run(stream()),
        tools=lambda: runner.run(tools()),
        cancel=lambda: runner.run(cancel()),
    )
