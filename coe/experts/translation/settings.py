"""Settings that both translated APIs share: reasoning effort, output format, and fields that have the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe.errors import InvalidRequest

PASSED_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias", "user", "chat_template_kwargs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""Fields of chat, some of vLLM alone, that pass unchanged where a client sends them in another API."""
EFFORTS: Mapping[str, str] = {
    **{name: name for name in ("none", "minimal", "low", "medium", "high")},
    **dict.fromkeys(("xhigh", "max"), "high"),
}
"""Reasoning efforts of clients, and those that servers of chat know."""
_BUDGETS = ((2_048, "low"), (8_192, "medium"))
"""Largest thinking budgets in tokens that count as this effort; larger ones are high."""


def add_effort(body: dict[str, Any], effort: Any, param: str) -> None:
    """Adds the reasoning effort, if there is one. Raises InvalidRequest for an unknown one."""
    if effort is None:
        return
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise InvalidRequest(f"{param} must be one of {', '.join(EFFORTS)}", param=param)
    body["reasoning_effort"] = EFFORTS[effort]


def effort_of_budget(tokens: Any) -> str:
    """Returns the effort that a thinking budget stands for."""
    return next((effort for limit, effort in _BUDGETS if tokens <= limit), "high")


def output_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns chat's output format for a JSON schema, which must have a name."""
    return {"type": "json_schema", "json_schema": {"name": "answer", **schema}}
