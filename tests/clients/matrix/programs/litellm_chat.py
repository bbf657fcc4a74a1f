"""litellm: `completion` with the provider `openai`."""

import json
from typing import Any

import litellm
from program import KEY, MAX_TURNS, PROMPTS, SCHEMA, TOOL_NAME, TOOL_TEXT, URL, next_code, report

litellm.telemetry = False
GATEWAY: Any = {"model": "openai/auto", "api_base": f"{URL}/v1", "api_key": KEY, "num_retries": 0}
TOOL = {"type": "function", "function": {"name": TOOL_NAME, "description": TOOL_TEXT, "parameters": SCHEMA}}


def messages(feature: str) -> list[Any]:
    return [{"role": "user", "content": PROMPTS[feature]}]


def chat() -> dict[str, Any]:
    return {"text": litellm.completion(messages=messages("chat"), **GATEWAY).choices[0].message.content}


def stream() -> dict[str, Any]:
    pieces = litellm.completion(messages=messages("stream"), stream=True, **GATEWAY)
    return {"pieces": [piece.choices[0].delta.content for piece in pieces if piece.choices[0].delta.content]}


def tools() -> dict[str, Any]:
    conversation = messages("tools")
    for _ in range(MAX_TURNS):
        message = litellm.completion(messages=conversation, tools=[TOOL], **GATEWAY).choices[0].message
        if not message.tool_calls:
            return {"text": message.content}
        conversation.append(message)
        for call in message.tool_calls:
            result = next_code(**json.loads(call.function.arguments))
            conversation.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise RuntimeError("the loop does not end")


def cancel() -> dict[str, Any]:
    pieces = litellm.completion(messages=messages("cancel"), stream=True, **GATEWAY)
    for piece in pieces:
        if text := piece.choices[0].delta.content:
            pieces.close()
            return {"pieces": [text]}
    return {"pieces": []}


report(chat=chat, stream=stream, tools=tools, cancel=cancel)
