"""OpenAI's Responses: instructions and input items to Chat."""

from __future__ import annotations

from typing import Any

import orjson

from coe.core import Api, Chat, Message
from coe.errors import InvalidRequest, RequestError
from coe.registry import AUTO
from gateway import errors
from gateway.dialects.parts import Needs, chat_of, fields_of, kind_of, model_of, text_of, turn_of, wants_schema

API: Api = "responses"
ROLES = ("system", "developer", "user", "assistant")
OUTPUTS = ("function_call_output", "custom_tool_call_output")


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    _check_kept_state(fields, model)
    needs: Needs = set()
    if fields.get("tools"):
        needs.add("tools")
    text = fields.get("text")
    if isinstance(text, dict) and wants_schema(text.get("format")):
        needs.add("json_schema")
    return chat_of(fields, _turns(fields, needs), needs, api=API, model=model)


def error_body(error: RequestError) -> bytes:
    """OpenAI's error body."""
    return errors.body_of(error)


def error_event(error: RequestError) -> bytes:
    """An error inside a stream, after which nothing follows."""
    told = {"type": "error", "code": error.code, "message": str(error), "param": error.param, "sequence_number": 0}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(told)


def _check_kept_state(fields: dict[str, Any], model: str) -> None:
    """What an earlier answer left on one server only that server can go on with."""
    if fields.get("background"):
        raise InvalidRequest("background answers could not be fetched later: leave background out", param="background")
    for name in ("previous_response_id", "conversation"):
        if model == AUTO and fields.get(name):
            message = f"{name} is known to one expert only: write its name as model (the model of the earlier answer)"
            raise InvalidRequest(message, param="model")


def _turns(fields: dict[str, Any], needs: Needs) -> list[Message]:
    turns = []
    instructions = fields.get("instructions")
    if instructions is not None:
        turns.append(Message("system", text_of(instructions, "instructions", needs)))
    given = fields.get("input")
    if isinstance(given, str):
        return [*turns, Message("user", given)]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("input must be text or a list of at least one item", param="input")
    for index, item in enumerate(given):
        if (turn := _turn(item, index, needs)) is not None:
            turns.append(turn)
    return turns


def _turn(item: Any, index: int, needs: Needs) -> Message | None:
    """A message or a tool's output; None for the rest: calls, reasoning, references."""
    if isinstance(item, dict) and item.get("type", "message") == "message":
        return turn_of(item, "input", index, ROLES, needs)
    if kind_of(item, "input", index) in OUTPUTS:
        return Message("tool", text_of(item.get("output"), f"input[{index}].output", needs))
    return None
