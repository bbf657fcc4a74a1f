"""Which experts can take a chat at all, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence

from coe.core import Chat
from coe.errors import InvalidRequest, ModelNotFound
from coe.registry import AUTO, ExpertSpec, Registry

CHARACTERS_PER_TOKEN = 8
"""More characters than this per token no tokenizer manages on real text, so beyond it a chat surely does not fit."""
_TRANSLATED = frozenset({"responses", "messages"})
"""APIs that reach an expert which speaks chat alone through a translation."""


def obstacle(chat: Chat, spec: ExpertSpec) -> str:
    """Why an expert cannot take a chat; empty when it can."""
    if chat.api not in spec.supported_apis and not (chat.api in _TRANSLATED and "chat" in spec.supported_apis):
        return f"{spec.name} does not speak the {chat.api} API"
    if missing := chat.needs - spec.capabilities:
        return f"{spec.name} has no {', no '.join(sorted(missing))}"
    if chat.characters > spec.context_length * CHARACTERS_PER_TOKEN:
        return f"{spec.name} reads {spec.context_length} tokens and the chat has {chat.characters} characters"
    return ""


def check_one_embedder(chat: Chat, able: Sequence[str]) -> None:
    """Raises InvalidRequest where texts to embed could go to several experts."""
    if chat.api == "embeddings" and len(able) > 1:
        message = f"vectors of different models do not mix: write as model one of {', '.join(able)}"
        raise InvalidRequest(message, param="model", code="ambiguous_model")


def check_model(chat: Chat, registry: Registry) -> None:
    """Raises ModelNotFound for a name that is declared nowhere."""
    known = (AUTO, *registry.expert_names)
    if chat.model not in known:
        raise ModelNotFound(f"the model {chat.model!r} does not exist here; known: {', '.join(known)}", param="model")


def check_pin(chat: Chat, registry: Registry, able: Sequence[str]) -> None:
    """Raises ModelNotFound for a pinned expert that is not declared, InvalidRequest for one that is not able."""
    check_model(chat, registry)
    if chat.model not in able:
        spec = registry.experts[registry.expert_names.index(chat.model)]
        raise InvalidRequest(obstacle(chat, spec), param="model", code="no_capable_expert")
