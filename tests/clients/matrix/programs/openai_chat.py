"""openai-python: Chat Completions."""

import json
from typing import Any

from openai import OpenAI
from program import KEY, MAX_TURNS, PROMPTS, SCHEMA, TOOL_NAME, TOOL_TEXT, URL, next_code, report

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
TOOL: Any = {"type": "function", "function": {"name": TOOL_NAME, "description": TOOL_TEXT, "parameters": SCHEMA}}


def messages(feature: str) -> list[Any]:
    return [{"role": "user", "content": PROMPTS[feature]}]


def chat() -> dict[str, Any]:
    answer = client.chat.completions.create(model="auto", messages=messages("chat"))
    return {"text": answer.choices[0].message.content}


def stream() -> dict[str, Any]:
    pieces = client.chat.completions.create(model="auto", messages=messages("stream"), stream=True)
    return {"pieces": [piece.choices[0].delta.content for piece in pieces if piece.choices[0].delta.content]}


def tools() -> dict[str, Any]:
    conversation = messages("tools")
    for _ in range(MAX_TURNS):
        answer = client.chat.completions.create(model="auto", messages=conversation, tools=[TOOL])
        message = answer.choices[0].message
        if not message.tool_calls:
            return {"text": message.content}
        conversation.append(message)
        for call in message.tool_calls:
            result = next_code(**json.loads(call.function.arguments))
            conversation.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise RuntimeError("the loop does not end")


def cancel() -> dict[str, Any]:
    with client.chat.completions.create(model="auto", messages=messages("cancel"), stream=True) as pieces:
        for piece in pieces:
            if text := piece.choices[0].delta.content:
                return {"pieces": [text]}
    return {"pieces": []}


report(chat=chat, stream=stream, tools=tools, cancel=cancel)
