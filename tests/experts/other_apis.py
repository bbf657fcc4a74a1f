"""Responses of servers in the APIs other than chat: non-streaming ones, event streams, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    plain: dict[str, Any]
    events: list[str] = field(default_factory=list)
    failure: str = ""

    def shown(self, kind: str) -> list[str]:
        """The events of a good stream, one `cut` short, one that starts with an error (`sorry`), or one that ends with
        an error (`late`)."""
        return {
            "good": self.events,
            "cut": self.events[:-1],
            "sorry": [*(event for event in self.events[:1] if '"type"' in event), self.failure],
            "late": [*self.events[:2], self.failure],
        }[kind]


SAMPLES = {
    "completions": Sample(
        {"choices": [{"text": "hi"}], "usage": {"prompt_tokens": 2, "completion_tokens": 4}},
        [
            '{"model":"M","choices":[{"text":"hi","finish_reason":null}]}',
            '{"choices":[{"text":"!","finish_reason":null}],"usage":{"prompt_tokens":2,"completion_tokens":4}}',
            "[DONE]",
        ],
        '{"error":{"message":"cuda died"}}',
    ),
    "responses": Sample(
        {"output": [], "error": None, "usage": {"input_tokens": 2, "output_tokens": 4}},
        [
            '{"type":"response.created","response":{"model":"M","error":null,"metadata":{"type":"error"}}}',
            '{"type":"response.output_text.delta","delta":"hi"}',
            '{"type":"response.completed","response":{"model":"M","usage":{"input_tokens":2,"output_tokens":4}}}',
        ],
        '{"type":"response.failed","response":{"error":{"code":"server_error","message":"cuda died"}}}',
    ),
    "messages": Sample(
        {"content": [], "usage": {"input_tokens": 1, "cache_read_input_tokens": 1, "output_tokens": 4}},
        [
            '{"type":"message_start","message":{"model":"M","usage":{"input_tokens":2,"output_tokens":1}}}',
            '{"type":"content_block_delta","delta":{"type":"text_delta","text":"hi"}}',
            '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}',
            '{"type":"message_stop"}',
        ],
        '{"type":"error","error":{"type":"overloaded_error","message":"cuda died"}}',
    ),
    "embeddings": Sample({"data": [], "usage": {"prompt_tokens": 2, "completion_tokens": 4}}),
}
