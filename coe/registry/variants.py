"""Models of the prices of an expert and of its variants, the ways to call it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from coe.registry.sections import Name, StrictModel


class Prices(StrictModel):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """Price of input tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """Price of output tokens."""
    cached_input: Annotated[float, Field(ge=0)] | None = None
    """Price of input tokens that the server reads from its prompt cache, at most the price of input tokens. Default:
    the price of input tokens."""

    @model_validator(mode="after")
    def _check_cached_input(self) -> Prices:
        if self.cached_input is not None and self.cached_input > self.input:
            raise PydanticCustomError(
                "cached_input",
                "cached_input {cached} is above input {input}; cached tokens are a discounted part of the input: "
                "lower it, or leave it out",
                {"cached": self.cached_input, "input": self.input},
            )
        return self

    @property
    def cached(self) -> float:
        """Price of cached input tokens, declared or not."""
        return self.input if self.cached_input is None else self.cached_input

    def cost(self, input_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """Return US dollars. The cached tokens are a part of the input tokens."""
        full = (input_tokens - cached_tokens) * self.input
        return (full + cached_tokens * self.cached + output_tokens * self.output) / 1e6


class VariantSpec(StrictModel):
    """One way to call an expert, such as another reasoning effort or token budget. It shares the expert's server."""

    name: Name
    """Name of the variant. A client that sends EXPERT:NAME as `model` pins it."""
    parameters: dict[str, Any] = Field(min_length=1)
    """Body fields of requests to this variant, under their names in Chat Completions. A request that sets one of them
    to another value does not go to the variant."""
    prices: Prices | None = None
    """Prices of the variant. Default: those of the expert."""
