"""openai-python: a Responses loop whose turns refer to the stored answer before them (`previous_response_id`)."""

import json
from typing import Any

from openai import OpenAI
from program import KEY, MAX_TURNS, PROMPTS, SCHEMA, TOOL_NAME, TOOL_TEXT, URL, next_code, report

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
TOOL: Any = {"type": "function", "name": TOOL_NAME, "description": TOOL_TEXT, "parameters": SCHEMA, "strict": True}


def tools() -> dict[str, Any]:
    given: list[Any] = [{"role": "user", "content": PROMPTS["tools"]}]
    previous: str | None = None
    for _ in range(MAX_TURNS):
        answer = client.responses.create(model="auto", input=given, tools=[TOOL], previous_response_id=previous)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return {"text": answer.output_text}
        previous = answer.id
        given = [
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": next_code(**json.loads(call.arguments)),
            }
            for call in calls
        ]
    raise RuntimeError("the loop does not end")


report(tools=tools)
