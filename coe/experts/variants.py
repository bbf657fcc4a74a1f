"""Variants of experts: the same expert, called with other parameters.

`VariantExpert` answers like a separate expert and calls the declared one, so breaker, health, connections and
residency are shared. `contradiction` says why a request does not go to a variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coe.core import Call, Chat, Expert, Health, Reply
from coe.errors import ExpertError
from coe.experts.api_formats import API_FORMATS, LENGTH_FIELDS
from coe.registry import ExpertVariant, Registry


class VariantExpert:
    """One variant of `expert`, whose `parameters` override those that the expert declares."""

    def __init__(self, spec: ExpertVariant, expert: Expert) -> None:
        self.name = spec.name
        self._parameters = spec.variant.parameters
        self._expert = expert

    @property
    def health(self) -> Health:
        """The health of the expert."""
        return self._expert.health

    async def stream(self, call: Call) -> Reply:
        """Call the expert with the parameters of the variant. Raises what the expert raises, under this name."""
        try:
            return await self._expert.stream(replace(call, parameters=self._parameters, arm=self.name))
        except ExpertError as error:
            error.expert = self.name
            raise

    async def aclose(self) -> None:
        """Does nothing: the caller closes the expert."""


def build_variants(registry: Registry, experts: Mapping[str, Expert]) -> dict[str, VariantExpert]:
    """Return every variant by its name, over the declared experts."""
    return {spec.name: VariantExpert(spec, experts[spec.variant_of]) for spec in registry.variants}


def contradiction(chat: Chat, spec: ExpertVariant) -> str:
    """Return the field of a chat that a variant would set to another value; empty without one.

    A limit of the answer's length counts under all its names.
    """
    for name, value in API_FORMATS[chat.api].defaults(spec.variant.parameters).items():
        for own in LENGTH_FIELDS if name in LENGTH_FIELDS else (name,):
            if _differs(chat.fields.get(own), value):
                return own
    return ""


def _differs(requested: Any, own: Any) -> bool:
    """Return whether a request sets a parameter otherwise; of objects, only the fields that both set are compared."""
    if isinstance(requested, dict) and isinstance(own, dict):
        return any(_differs(requested.get(name), value) for name, value in own.items())
    return requested is not None and requested != own
