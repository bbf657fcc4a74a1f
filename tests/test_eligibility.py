"""A chat that needs nothing special takes a shortcut to the same eligible experts."""

from __future__ import annotations

from typing import Any

import pytest

from coe.core import Api, ExpertRule
from coe.errors import InvalidRequest
from coe.registry import Registry
from coe.routing.eligibility import MAX_CHARACTERS_PER_TOKEN, eligible_arms, ineligibility
from tests.decisions import chat_of
from tests.fakes import registry_of

CONTEXT = 1000


def declared(**changes: Any) -> Registry:
    """Three experts, of which `generalist` embeds texts only and `coder` has the shortest context."""
    experts: list[dict[str, Any]] = [
        {**one.model_dump(mode="json", exclude_none=True, exclude_unset=True), "context_length": length * CONTEXT}
        for length, one in enumerate(registry_of().experts, start=1)
    ]
    embedder = {**experts[2], "name": "embedder", "apis": ["embeddings"], "capabilities": []}
    return registry_of(experts=[*experts, embedder], **changes)


@pytest.mark.parametrize("api", ["chat", "responses", "completions"])
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"tools"})])
@pytest.mark.parametrize("rule", [None, ExpertRule("key", ("painter",))])
@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_the_shortcut_gives_the_experts_that_are_not_ineligible(
    api: Api, needs: frozenset[str], rule: ExpertRule | None, length: int
) -> None:
    registry = declared()
    chat = chat_of("x", needs=needs, characters=length * CONTEXT * MAX_CHARACTERS_PER_TOKEN + 1, api=api)
    expected = [
        one.name for one in registry.experts if not ineligibility(chat, one) and (rule is None or one.name == "painter")
    ]
    if not expected:
        with pytest.raises(InvalidRequest, match="no expert can take this request"):
            eligible_arms(chat, registry, {}, "", language="en", rule=rule)
        return
    assert sorted(eligible_arms(chat, registry, {}, "", language="en", rule=rule)) == sorted(expected)
    if api == "chat":
        assert "embedder" not in expected
