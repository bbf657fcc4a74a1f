"""OpenAI's legacy Completions API: prompts without roles."""

from __future__ import annotations

from coe.core import Api, Chat, Message
from gateway.dialects.chat import error_body, error_event
from gateway.dialects.parsing import chat_of, fields_of, model_of, prompts_of

__all__ = ["API", "error_body", "error_event", "parse"]

API: Api = "completions"


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body: all its prompts as one user message. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    prompts = prompts_of(fields.get("prompt"), "prompt")
    text = "\n".join([prompt for prompt in prompts if isinstance(prompt, str)])
    longest = max(map(len, prompts))  # each prompt gets its own answer
    return chat_of(fields, (Message("user", text),), set(), api=API, model=model, characters=longest)
