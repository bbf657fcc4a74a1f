"""Eligibility: which experts can take a request at all, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence

from coe.core import Chat
from coe.errors import InvalidRequest, ModelNotFound
from coe.registry import AUTO, ExpertSpec, Registry

MAX_CHARACTERS_PER_TOKEN = 8
"""No tokenizer exceeds this on real text, so a longer chat certainly does not fit into the context."""
_TRANSLATED_APIS = frozenset({"responses", "messages"})
"""APIs that are translated for an expert with chat only."""


def ineligibility(chat: Chat, spec: ExpertSpec) -> str:
    """Return why an expert cannot take a chat; empty if it can."""
    translated = chat.api in _TRANSLATED_APIS and "chat" in spec.supported_apis
    if chat.api not in spec.supported_apis and not translated:
        return f"{spec.name} does not support the {chat.api} API"
    if missing := chat.needs - spec.capabilities:
        return f"{spec.name} has no {', no '.join(sorted(missing))}"
    if chat.characters > spec.context_length * MAX_CHARACTERS_PER_TOKEN:
        return (
            f"{spec.name} has a context of {spec.context_length} tokens and the chat has {chat.characters} characters"
        )
    return ""


def check_single_embedder(chat: Chat, eligible: Sequence[str]) -> None:
    """Raise InvalidRequest if several experts could embed the texts, as their vectors are not comparable."""
    if chat.api == "embeddings" and len(eligible) > 1:
        message = f"vectors of different models are not comparable: set model to one of {', '.join(eligible)}"
        raise InvalidRequest(message, param="model", code="ambiguous_model")


def check_model(chat: Chat, registry: Registry) -> None:
    """Raise ModelNotFound for a model name that is not declared."""
    known = (AUTO, *registry.expert_names)
    if chat.model not in known:
        raise ModelNotFound(f"the model {chat.model!r} does not exist here; known: {', '.join(known)}", param="model")


def check_pin(chat: Chat, registry: Registry, eligible: Sequence[str]) -> None:
    """Raise ModelNotFound for a pinned expert that is not declared, InvalidRequest for one that is not eligible."""
    check_model(chat, registry)
    if chat.model not in eligible:
        reason = ineligibility(chat, registry.expert(chat.model))
        raise InvalidRequest(reason, param="model", code="no_capable_expert")
