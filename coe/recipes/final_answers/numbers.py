"""Finds the number of a numeric answer: decimal commas, fractions, powers and per cent, in digits of any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from itertools import islice

from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, SPACED

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TIMES_TEN = r"\s*(?:×|·|\*|[xX]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,4})\s*\}?"
_NUMBER = re.compile(
    rf"(?<![{SPACED}_.^])([+-]?)\$?(?:"
    rf"\\[dt]?frac\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}"
    rf"|({_DIGITS})(?:{_TIMES_TEN}|[eE]([+-]?\d{{1,4}})(?![{SPACED}_.])|\s*(?:\^|\*\*)\s*\{{?\s*([+-]?\d{{1,3}})\s*\}}?"
    rf"|\s?/\s?({_DIGITS}))?"
    rf")(\s?\\?%|\s?percent\b)?"
)
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\s?\^\s?\{?[+-]?\d+\}?")  # the 2 of m^2 is not a number
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_FORMS = (
    *(("−", "-"), ("–", "-"), ("⁄", "/"), ("٪", "%"), ("٫", "."), ("٬", ",")),
    *(("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\$", "$")),
    *(("，", ", "), ("…", " ")),  # separators, before NFKC changes them
)
_CONTINENTAL = re.compile(  # 3,5 and 1.234,5 and 1.234.567, but none of 1,2,3
    r"(?<![\d,])(?<!\d\.)(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d+,\d+)(?!,\S|\.?\d)"
)
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")
_OTHER_DIGIT = re.compile(rf"(?<![{SPACED}_^])\d")  # the 2 of H2O and of x_2 are of a name
_SOLUTION_END = "####"
"""Before the number, in references that hold the whole solution."""


def last_number(text: str) -> tuple[float, ...]:
    """The last number of a text, in \\boxed{} where there is one: its values as written, then read as per cent.

    Reads 1,234.5, -3, 3/4, \\frac{3}{4}, 1.5e-3, 1.5 × 10^-3, 2^10 and 12 %, whatever unit follows, in digits of any
    script; 3,5 and 1.234,5 have a decimal comma, and 1,234 is English. Empty when the text holds no number.
    """
    found = _last(_pointed(_plain(text)))
    if found is None:
        return ()
    match, value = found
    return (value, value / 100) if match[9] else (value,)


def unclear(reference: str) -> str | None:
    """Return the reason why a text cannot be the reference of `numeric`, with the remedy; None where it can."""
    plain = _plain(reference.rpartition(_SOLUTION_END)[2])
    pointed = _pointed(plain)
    found = _last(pointed)
    if found is None:
        return "must hold a number"
    match, _ = found
    if pointed != plain:
        return f"must have a decimal point, for a comma may part a list: write {match[0].strip()}"
    if _OTHER_DIGIT.search(f"{plain[: match.start()]} {plain[match.end() :]}"):
        return f"must be one number, without others next to it: {match[0].strip()} is all that would be compared"
    return None


def _last(text: str) -> tuple[re.Match[str], float] | None:
    for match in reversed(list(_NUMBER.finditer(text))):
        try:
            if (value := _exact(match, percent=1)) is not None:
                return match, float(value)
        except OverflowError:
            continue
    return None


def _plain(text: str) -> str:
    """The part of a text that may hold its number, with typographic forms as ASCII: minus signs, digits, thousands,
    fractions."""
    text = text[-MAX_READ_CHARACTERS:]
    if boxed := BOXED.findall(text):
        text = boxed[-1]
    for form, plain in _FORMS:
        text = text.replace(form, plain)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = _SUPERSCRIPT.sub(lambda power: "^" + power[0].translate(_SUPERSCRIPTS), text)
    text = _VULGAR.sub(lambda part: f"{unicodedata.numeric(part[0]):.15f}".lstrip("0"), text)  # so that 1½ is 1.5
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?![0-9])\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
    return _UNIT_POWER.sub("", text)


def _pointed(text: str) -> str:
    """The text with decimal points in place of decimal commas."""
    return _CONTINENTAL.sub(_with_point, text)


def _with_point(number: re.Match[str]) -> str:
    """A decimal comma as a point; a pair in brackets is a list and stays."""
    start, end = number.span()
    before = number.string[max(start - 2, 0) : start].rstrip("+-")
    pair = before.endswith(("(", "[", "{")) and number.string.startswith((")", "]", "}"), end)
    if pair or _THOUSANDS.fullmatch(number[0]):
        return number[0]
    return number[0].replace(".", "").replace(",", ".")


# ---------------------------------------------------------------------------------------------------- one number alone

MAX_EXACT_DIGITS = 60
"""Whole numbers with at most this many digits are written out; all others have 12 significant digits."""
_MAX_DIGITS = 1000
"""Digits of a number, and exponent; others are too large to compare."""
_LEAD = re.compile(
    r"(?i:\s{0,3}(?:(?:so|it|that|this|there|the|a|answer|result|total|value|sum|number|is|are|was|were|be|of|about|around"
    r"|approximately|approx\.?|roughly|exactly|equals?|equal to|usd|eur|us|\\approx|etwa|rund|ca\.?|circa|ungefähr"
    r"|environ|cerca de|unos)(?![^\W_])|[=≈~:$€£¥(约約]|[a-z]\s?[=≈])){0,9}\s{0,3}"
)
_UNIT = r"(?:[^\W\dα-λν-ω_]|(?<=[^\W\d])[/-](?=[^\W\d])|[°€£¥$'′″.²³](?!\d)|[)\]])"
_TAIL = re.compile(  # not 5 pm, 5 or 6, 5 million, 5x
    r"(?!\s?(?i:[ap]\.?m|b?ce?|ad|or|and|to|thousand|[mbt]r?illion)\b)(?!\s?[a-z](?![^\W_])(?<![gmslhkd]))"
    rf"(?:\s?{_UNIT}{{1,20}}){{0,3}}\s?"
)
_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,80})\}|(?<![\d*])\*\*([^*]{1,80})\*\*(?![\d*])|\\[()\[\]]"
)
_CLAUSE = re.compile(
    r"(?i:\b(?:is|are|was|were|be|has|have|had|equals?|makes|made|costs|needs?|gets|got|earns|pays|spends|spent|takes"
    r"|took|left|remains?|gives|yields|total(?:s|ing)?|ist|sind|beträgt|ergibt|est|sont|es|son|é|são|è|sono)\b"
    r"|[=≈是为為は])[^\d=≈.+-]{0,30}\Z"
)
_NOT_EQUAL = re.compile(  # not 5, more than 5, at least 5
    r"(?i:\b(?:not|never|than|least|most|over|under|above|below|up\sto|between|nicht|pas)|n['’]t|不是?)\W{0,5}\Z"
)
_SEVERAL = re.compile(r",\s|;|\b(?:and|or)\b", re.IGNORECASE)  # x = 5 and y = 6


def number_form(text: str) -> str | None:
    """Return the value of a text that is one number, None for any other text.

    A unit of at most three words and words such as "it is about" do not count; 50 % is 0.5. Whole numbers are exact,
    others have 12 significant digits, so that equal values have equal forms.
    """
    return _form(text, lambda before: _LEAD.fullmatch(before) is not None)


def concluded_number(sentence: str) -> str | None:
    """Return the value of the only number of a sentence that ends with it: "She has 42 eggs left.", "6 * 7 = 42"."""
    left, equals, right = sentence.rpartition("=")
    if equals and not _SEVERAL.search(left) and (found := number_form(right)) is not None:
        return found
    return _form(sentence, lambda before: _CLAUSE.search(before) is not None)


def _form(text: str, leads: Callable[[str], bool]) -> str | None:
    bare = " ".join(_MARKUP.sub(lambda mark: f" {mark[1] or mark[2] or ''} ", text).split()).strip("*_`\"' ")
    plain = _pointed(_plain(bare)).strip()
    matches = list(islice(_NUMBER.finditer(plain), 2))
    if len(matches) != 1:
        return None
    before, after = plain[: matches[0].start()], plain[matches[0].end() :].rstrip(" .!")
    value = _exact(matches[0])
    if value is None or not leads(before) or _NOT_EQUAL.search(before) or not _TAIL.fullmatch(after):
        return None
    if value.denominator == 1 and abs(value) < 10**MAX_EXACT_DIGITS:
        return str(value.numerator)
    try:
        return f"{float(value):.12g}" if float(value) else None
    except OverflowError:
        return None


def _exact(match: re.Match[str], *, percent: int = 100) -> Fraction | None:
    """Return the exact value, one of per cent divided by `percent`; None where it is undefined or too large."""
    sign, top, bottom, digits, ten, exponent, power, divisor, is_percent = match.groups()
    shift, raised = int(ten or exponent or 0), int(power or 1)
    parts = [(part or "").replace(",", "") for part in (digits if top is None else top, bottom or divisor or "1")]
    if max(abs(shift), *(len(part) * abs(raised) for part in parts)) > _MAX_DIGITS:
        return None
    try:
        value = (Fraction(parts[0]) / Fraction(parts[1]) * Fraction(10) ** shift) ** raised
    except ZeroDivisionError:
        return None
    return (-value if sign == "-" else value) / (percent if is_percent else 1)
