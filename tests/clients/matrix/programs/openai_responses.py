"""openai-python: Responses. The loop sends its whole history, as clients with `store: false` do."""

import json
from typing import Any

from openai import OpenAI
from program import KEY, MAX_TURNS, PROMPTS, SCHEMA, TOOL_NAME, TOOL_TEXT, URL, next_code, report

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
TOOL: Any = {"type": "function", "name": TOOL_NAME, "description": TOOL_TEXT, "parameters": SCHEMA, "strict": True}


def chat() -> dict[str, Any]:
    return {"text": client.responses.create(model="auto", input=PROMPTS["chat"]).output_text}


def stream() -> dict[str, Any]:
    with client.responses.stream(model="auto", input=PROMPTS["stream"]) as events:
        return {"pieces": [event.delta for event in events if event.type == "response.output_text.delta"]}


def tools() -> dict[str, Any]:
    conversation: list[Any] = [{"role": "user", "content": PROMPTS["tools"]}]
    for _ in range(MAX_TURNS):
        answer = client.responses.create(model="auto", input=conversation, tools=[TOOL], store=False)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return {"text": answer.output_text}
        conversation += answer.output
        for call in calls:
            result = next_code(**json.loads(call.arguments))
            conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    raise RuntimeError("the loop does not end")


def cancel() -> dict[str, Any]:
    with client.responses.create(model="auto", input=PROMPTS["cancel"], stream=True) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                return {"pieces": [event.delta]}
    return {"pieces": []}


report(chat=chat, stream=stream, tools=tools, cancel=cancel)
