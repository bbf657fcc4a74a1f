"""Chats and decisions about them, for tests of decide()."""

from __future__ import annotations

import numpy as np

from coe.core import Api, Chat, Decision, Message, Prediction, Standing
from coe.routing.composition import decide, declared_assignment
from tests.fakes import registry_of

CATEGORIES = ("code", "art", "general")


DOWN, FULL = Standing(up=False), Standing(load=1.0)


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
    previous: str | None = None,
    doubt: float = 0.0,
    familiarity: float = 1.0,
    standings: dict[str, Standing] | None = None,
    uniform: float | None = None,
    **changes: object,
) -> Decision:
    registry = registry_of(**changes)
    return decide(
        chat,
        Prediction(np.array(posterior, dtype=np.float32), "test", familiarity),
        registry=registry,
        assignment=declared_assignment(registry, CATEGORIES),
        doubt=doubt,
        previous=previous,
        standings=standings or {},
        uniform=uniform,
    )
