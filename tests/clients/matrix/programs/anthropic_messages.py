"""anthropic-python: Messages. The loop is the SDK's own tool runner."""

from typing import Any

import program
from anthropic import Anthropic, beta_tool
from program import KEY, MAX_TURNS, PROMPTS, URL, report

client = Anthropic(base_url=URL, api_key=KEY, max_retries=0)
LIMIT = 400


@beta_tool
def next_code(step: int) -> str:
    """Return the code of a step.

    Args:
        step: Number of the step, from 1.
    """
    return program.next_code(step)


def messages(feature: str) -> list[Any]:
    return [{"role": "user", "content": PROMPTS[feature]}]


def chat() -> dict[str, Any]:
    answer = client.messages.create(model="auto", max_tokens=LIMIT, messages=messages("chat"))
    return {"text": answer.content[0].text}


def stream() -> dict[str, Any]:
    with client.messages.stream(model="auto", max_tokens=LIMIT, messages=messages("stream")) as answer:
        return {"pieces": list(answer.text_stream)}


def tools() -> dict[str, Any]:
    runner = client.beta.messages.tool_runner(
        model="auto", max_tokens=LIMIT, tools=[next_code], messages=messages("tools"), max_iterations=MAX_TURNS
    )
    return {"text": runner.until_done().content[0].text}


def cancel() -> dict[str, Any]:
    with client.messages.stream(model="auto", max_tokens=LIMIT, messages=messages("cancel")) as answer:
        for text in answer.text_stream:
            return {"pieces": [text]}
    return {"pieces": []}


report(chat=chat, stream=stream, tools=tools, cancel=cancel)
