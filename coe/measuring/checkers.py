"""Checkers: pure functions that score an answer against its reference, in [0, 1].

Answers are free text in many languages. `coe.recipes` finds the letter or the number that an answer settles on.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from coe.recipes.final_answers.answers import json_form
from coe.recipes.final_answers.choices import chosen
from coe.recipes.final_answers.numbers import last_number
from coe.recipes.final_answers.programs import fenced_blocks
from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, SPACED, normalised

TOLERANCE = 1e-4
"""Default relative error of a numeric answer; two whole numbers must be equal."""
MAX_OPENINGS = 1_000
"""Opening brackets without JSON that are tried."""


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
    """1.0 when the JSON in an answer has the reference's values: the last object, or list, as the reference is one, of
    the last fenced block or else of the answer. Objects and lists inside others do not count."""
    blocks = list(fenced_blocks(answer))
    text = blocks[-1].text if blocks else answer
    expected = json_form(reference.strip())
    return float(expected is not None and _last_json(text[-MAX_READ_CHARACTERS:], expected[0]) == expected)


def _last_json(text: str, opening: str) -> str | None:
    """Return the form of the last JSON value that begins with `opening` and is not part of another one."""
    found, place, failed = None, 0, 0
    while failed < MAX_OPENINGS and (bracket := _OPENING.search(text, place)):
        place = bracket.start()
        try:
            _, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place, failed = place + 1, failed + 1
            continue
        found = json_form(text[place:end]) if text[place] == opening else found
        place = end
    return found


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(parse_constant=_no_json)


def _close(value: float, expected: float, tolerance: float) -> bool:
    if value.is_integer() and expected.is_integer() and tolerance <= TOLERANCE:
        return value == expected
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-12)
