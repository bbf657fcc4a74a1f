"""The normalized final answer of a response, so that responses with the same meaning give the same string."""

from __future__ import annotations

from coe.experts.recipes.choices import chosen
from coe.experts.recipes.numbers import last_number
from coe.experts.recipes.wording import normalised

MAX_SHORT_CHARACTERS = 200


def final_answer(text: str) -> str | None:
    """Return the normalized final answer, None where there is no readable one."""
    plain = text.strip()
    if not plain or len(plain) > MAX_SHORT_CHARACTERS:
        return None
    if (letter := chosen(plain)) is not None:
        return letter
    if numbers := last_number(plain):
        return f"{numbers[-1]:.12g}"
    return normalised(plain) or None
