"""An expert of chat in process: it keeps the calls, and answers with deltas, plain or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import orjson

from coe.core import Api, Call, Health, Reply
from coe.errors import ExpertError
from coe.experts.api_formats import record_usage
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec
from coe.usage import Usage

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


class ChatReply:
    def __init__(self, chunks: Sequence[bytes], media_type: str) -> None:
        self.media_type = media_type
        self.usage = Usage()
        self.closed = False
        self._chunks = chunks

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._chunks:
            yield chunk
        record_usage(self.usage, USAGE)

    async def aclose(self) -> None:
        self.closed = True


class ChatExpert:
    """Answers with `deltas`, of which the last has the finish reason; raises the `errors` first, one a call."""

    health = Health()

    def __init__(
        self,
        *deltas: dict[str, Any],
        reason: str = "stop",
        errors: Sequence[ExpertError] = (),
        name: str = "clever",
    ) -> None:
        self.name = name
        self.deltas = deltas
        self.reason = reason
        self.calls: list[Call] = []
        self.replies: list[ChatReply] = []
        self._errors = list(errors)

    async def stream(self, call: Call) -> Reply:
        self.calls.append(call)
        if self._errors:
            raise self._errors.pop(0)
        chunks = [{"delta": delta, "finish_reason": None} for delta in self.deltas]
        if call.stream:
            parts = [*chunks, {"delta": {}, "finish_reason": self.reason}]
            events = [b"data: %b\n\n" % orjson.dumps({"choices": [{"index": 0, **part}]}) for part in parts]
            reply = ChatReply([*events, b"data: [DONE]\n\n"], "text/event-stream")
        else:
            choice = {"message": merged(self.deltas), "finish_reason": self.reason}
            answer = {"choices": [choice], "usage": USAGE}
            reply = ChatReply([orjson.dumps(answer)], "application/json")
        self.replies.append(reply)
        return reply


def merged(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that the deltas of a stream add up to."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for delta in deltas:
        for name, value in delta.items():
            if name != "tool_calls":
                message[name] = (message.get(name) or type(value)()) + value
                continue
            for call in value:
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


def translated(chat: ChatExpert, **declared: Any) -> TranslatedExpert:
    spec = {"name": chat.name, "model": "m", "runtime": "external", "base_url": "http://h/v1", **declared}
    return TranslatedExpert(chat, ExpertSpec.model_validate(spec))


async def answer(chat: ChatExpert, api: Api, *, stream: bool = False, **fields: Any) -> list[dict[str, Any]]:
    """The translated answer: one JSON object, or the events of a stream."""
    prompt: dict[str, Any] = (
        {"input": "hi"} if api == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
    )
    call = Call({"model": "auto", "stream": stream, **prompt, **fields}, stream, 5, 5, api)
    reply = await translated(chat).stream(call)
    body = b"".join([chunk async for chunk in reply.chunks()])
    await reply.aclose()
    assert chat.replies[-1].closed
    if not stream:
        return [orjson.loads(body)]
    events = [event.split(b"\n") for event in body.removesuffix(b"\n\n").split(b"\n\n")]
    parsed = [orjson.loads(data.removeprefix(b"data: ")) for _, data in events]
    assert [name for name, _ in events] == [b"event: " + event["type"].encode() for event in parsed]
    return parsed


async def sent(api: Api, **fields: Any) -> dict[str, Any]:
    """The body of chat that a request becomes."""
    chat = ChatExpert({"content": "hi"})
    await answer(chat, api, **fields)
    return dict(chat.calls[-1].fields)
