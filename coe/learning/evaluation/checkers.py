"""Checkers: pure functions that score an answer against its reference, in [0, 1].

Answers are free text in many languages. `coe.experts.recipes` finds the letter or the number that an answer settles on.
"""

from __future__ import annotations

import math
import re

from coe.experts.recipes.final_answers.answers import json_form
from coe.experts.recipes.final_answers.choices import chosen
from coe.experts.recipes.final_answers.numbers import last_number
from coe.experts.recipes.final_answers.programs import fenced_blocks
from coe.experts.recipes.final_answers.wording import SPACED, normalised

TOLERANCE = 1e-4
"""Default relative error of a numeric answer; two whole numbers must be equal."""


def exact(answer: str, reference: str) -> float:
    """1.0 when both are the same text but for case, runs of white space, and punctuation at the ends."""
    return float(normalised(answer) == normalised(reference))


def contains(answer: str, reference: str) -> float:
    """1.0 when the reference occurs in the answer as whole words; in scripts that write without spaces, anywhere."""
    expected = normalised(reference)
    before = rf"(?<![{SPACED}])" if re.match(f"[{SPACED}]", expected) else ""
    after = rf"(?![{SPACED}])" if re.search(f"[{SPACED}]$", expected) else ""
    return float(re.search(before + re.escape(expected) + after, normalised(answer)) is not None)


def choice(answer: str, reference: str) -> float:
    """1.0 when the answer's final letter is the reference's, A to J."""
    return float(chosen(answer) == chosen(reference))


def numeric(answer: str, reference: str, *, tolerance: float = TOLERANCE) -> float:
    """1.0 when the answer's last number is the reference's, within a relative tolerance.

    A number with a percent sign counts as written and as its hundredth, since references are given either way.
    """
    found, expected = last_number(answer), last_number(reference)
    return float(any(_close(a, b, tolerance) for a in found for b in expected))


def same_json(answer: str, reference: str) -> float:
    """1.0 when the JSON in an answer has the reference's values: in the last fenced block, or between the first and
    the last bracket."""
    blocks = list(fenced_blocks(answer))
    text = blocks[-1].text if blocks else answer
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    found = text[min(starts) : max(text.rfind("}"), text.rfind("]")) + 1] if starts else ""
    return float((value := json_form(found)) is not None and value == json_form(reference.strip()))


def _close(value: float, expected: float, tolerance: float) -> bool:
    if value.is_integer() and expected.is_integer() and tolerance <= TOLERANCE:
        return value == expected
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-12)
