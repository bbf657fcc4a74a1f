"""`POST /v1/messages/count_tokens`: about how many tokens a Messages request has, without asking any expert."""

from __future__ import annotations

import math
from typing import Any

from coe.core import Chat, Wishes
from coe.routing.eligibility import check_model
from gateway.access.estimate import input_tokens
from gateway.dialects import messages as dialect
from gateway.request.dry_run import Inquiry
from gateway.serving_state import Current, Serving


def count_tokens(current: Current) -> Inquiry:
    """Takes a Messages body and answers with an estimate: each expert has a tokenizer of its own, and `auto` may be any
    of them. What an expert gets beside the body (its system prompt, passages) is not counted. Nothing is logged."""
    return Inquiry(current, dialect=dialect, permission="chat", answer=_answer)


async def _answer(serving: Serving, chat: Chat, _: Wishes) -> dict[str, Any]:
    check_model(chat, serving.registry)
    return {"input_tokens": math.ceil(input_tokens(chat))}
