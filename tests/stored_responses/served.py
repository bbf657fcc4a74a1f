"""A gateway that stores answers, with OpenAI's client: one expert answers Responses itself, another is translated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from coe import json_text
from coe.core import Call, Health, Reply
from coe.registry import Registry
from coe.usage import Usage
from tests.experts.translation.chat_expert import ChatExpert, translated
from tests.fakes import Gateway, gateway_of, registry_of

NATIVE = {"capabilities": ["tools"], "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}


class NativeExpert:
    """A server that speaks Responses: `resp_1`, `resp_2` and so on. It returns null for the id it did not get."""

    health = Health()
    name = "coder"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.text = "answer"

    async def stream(self, call: Call) -> Reply:
        self.calls.append(call)
        number = len(self.calls)
        item = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed"}
        item["content"] = [{"type": "output_text", "text": f"{self.text} {number}", "annotations": []}]  # type: ignore[assignment]
        answer = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "coder",
            "output": [item],
            "previous_response_id": None,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        return _Native(answer, stream=call.stream)


class _Native:
    def __init__(self, answer: dict[str, Any], *, stream: bool) -> None:
        self.media_type = "text/event-stream" if stream else "application/json"
        self.usage = Usage()
        kinds = ("created", "completed") if stream else ()
        events = [{"type": f"response.{kind}", "response": answer, "sequence_number": 0} for kind in kinds]
        self._chunks = [b"data: %b\n\n" % json_text.dumps(event) for event in events] or [json_text.dumps(answer)]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None: ...


def declared(store: str = "sqlite", **changes: Any) -> Registry:
    experts = [{"name": "coder", **NATIVE, "apis": ["chat", "responses"]}, {"name": "painter", **NATIVE}]
    experts += [{"name": "generalist", **NATIVE}]
    return registry_of(experts=experts, stored_responses={"store": store}, **changes)


class Served:
    """A gateway and its client. `chat` answers as `generalist`, translated, `native` as `coder`."""

    def __init__(self, gateway: Gateway, chat: ChatExpert, native: NativeExpert) -> None:
        self.gateway, self.chat, self.native = gateway, chat, native
        transport = httpx.ASGITransport(app=gateway.app)
        self.client = openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        )

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Role and text of the messages of the last chat call."""
        return [(message["role"], message["content"]) for message in self.chat.calls[-1].fields["messages"]]


@asynccontextmanager
async def served(folder: Path, registry: Registry | None = None, *deltas: dict[str, Any]) -> AsyncIterator[Served]:
    chat, native = ChatExpert(*(deltas or ({"content": "Paris."},)), name="generalist"), NativeExpert()
    experts = {"generalist": translated(chat), "coder": native}
    async with gateway_of(registry or declared(), stored=folder, real_experts=experts) as gateway:
        found = Served(gateway, chat, native)
        async with found.client:
            yield found
