"""OpenAI's Embeddings API. The input does not influence routing: vectors of different models do not mix."""

from __future__ import annotations

from coe.core import Api, Chat
from coe.errors import InvalidRequest
from gateway.dialects.chat import error_body, error_event
from gateway.dialects.parsing import chat_of, fields_of, model_of, prompts_of

__all__ = ["API", "error_body", "error_event", "parse"]

API: Api = "embeddings"


def parse(body: bytes | bytearray) -> Chat:
    """A chat without messages, as long as its longest input. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    if fields.get("stream"):
        raise InvalidRequest("embeddings do not stream: leave stream out", param="stream")
    longest = max(map(len, prompts_of(fields.get("input"), "input")))  # each input gets its own vector
    return chat_of(fields, (), set(), api=API, model=model, characters=longest)
