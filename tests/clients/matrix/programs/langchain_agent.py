"""LangChain: ChatOpenAI, with a bound tool."""

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from program import KEY, MAX_TURNS, PROMPTS, URL, report
from program import next_code as code

model = ChatOpenAI(model="auto", base_url=f"{URL}/v1", api_key=KEY, max_retries=0)


@tool
def next_code(step: int) -> str:
    """Return the code of a step."""
    return code(step)


def chat() -> dict[str, Any]:
    return {"text": model.invoke(PROMPTS["chat"]).content}


def stream() -> dict[str, Any]:
    return {"pieces": [piece.content for piece in model.stream(PROMPTS["stream"]) if piece.content]}


def tools() -> dict[str, Any]:
    bound = model.bind_tools([next_code])
    conversation: list[Any] = [HumanMessage(PROMPTS["tools"])]
    for _ in range(MAX_TURNS):
        message = bound.invoke(conversation)
        if not message.tool_calls:
            return {"text": message.content}
        conversation.append(message)
        calls = message.tool_calls
        conversation += [ToolMessage(next_code.invoke(call["args"]), tool_call_id=call["id"]) for call in calls]
    raise RuntimeError("the loop does not end")


def cancel() -> dict[str, Any]:
    pieces = model.stream(PROMPTS["cancel"])
    for piece in pieces:
        if piece.content:
            pieces.close()
            return {"pieces": [piece.content]}
    return {"pieces": []}


report(chat=chat, stream=stream, tools=tools, cancel=cancel)
