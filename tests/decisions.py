"""Chats and decisions for tests of `decide()`."""

from __future__ import annotations

import numpy as np

from coe.core import Api, Chat, Decision, Health, Message, Prediction
from coe.planning.problem import declared_assignment
from coe.routing.decision import Previous, decide
from tests.fakes import registry_of

CATEGORIES = ("code", "art", "general")


DOWN, FULL = Health(up=False), Health(load=1.0)


def chat_of(
    *texts: str,
    model: str = "auto",
    needs: frozenset[str] = frozenset(),
    characters: int = 10,
    api: Api = "chat",
) -> Chat:
    roles = {"S": "system", "A": "assistant"}
    messages = tuple(Message(roles.get(text[:1], "user"), text) for text in texts)
    return Chat(model, messages, False, needs, characters, {}, api)  # type: ignore[arg-type]


def decided(
    chat: Chat,
    *posterior: float,
    previous: str = "",
    continues: bool = False,
    confidence_threshold: float = 0.0,
    in_distribution: float = 1.0,
    health_by_expert: dict[str, Health] | None = None,
    uniform: float | None = None,
    language: str = "",
    **changes: object,
) -> Decision:
    registry = registry_of(**changes)
    return decide(
        chat,
        Prediction(np.array(posterior, dtype=np.float32), "test", in_distribution, language=language),
        registry=registry,
        assignment=declared_assignment(registry, CATEGORIES),
        confidence_threshold=confidence_threshold,
        previous=Previous(previous, continues),
        health_by_expert=health_by_expert or {},
        uniform=uniform,
    )
