"""Finds the number of a numeric answer: decimal commas, fractions, powers and per cent, in digits of any script."""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

from coe.experts.recipes.wording import MAX_READ_CHARACTERS, SPACED

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TIMES_TEN = r"\s*(?:×|·|\*|[xX]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,4})\s*\}?"
_NUMBER = re.compile(
    rf"(?<![{SPACED}_.^])([+-]?)\$?(?:"
    rf"\\[dt]?frac\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}"
    rf"|({_DIGITS})(?:{_TIMES_TEN}|[eE]([+-]?\d{{1,4}})(?![{SPACED}_.])|\s*(?:\^|\*\*)\s*\{{?\s*([+-]?\d{{1,3}})\s*\}}?"
    rf"|\s?/\s?({_DIGITS}))?"
    rf")(\s?\\?%|\s?percent\b)?"
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\s?\^\s?\{?[+-]?\d+\}?")  # the 2 of m^2 is no number
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
    """Why a text cannot be the reference of `numeric`, with the remedy; None where it can."""
    plain = _plain(reference.rpartition(_SOLUTION_END)[2])
    pointed = _pointed(plain)
    found = _last(pointed)
    if found is None:
        return "must hold a number"
    match, _ = found
    if pointed != plain:
        return f"must have a decimal point, for a comma may part a list: write {match[0].strip()}"
    if _OTHER_DIGIT.search(f"{plain[: match.start()]} {plain[match.end() :]}"):
        return f"must be one number, without others beside it: {match[0].strip()} is all that would be compared"
    return None


def _last(text: str) -> tuple[re.Match[str], float] | None:
    for match in reversed(list(_NUMBER.finditer(text))):
        value = _value(match)
        if value is not None and math.isfinite(value):
            return match, value
    return None


def _plain(text: str) -> str:
    """The part of a text that may hold its number, with typographic forms as ASCII: minus signs, digits, thousands,
    fractions."""
    text = text[-MAX_READ_CHARACTERS:]
    if boxed := _BOXED.findall(text):
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
    """The text with decimal commas as points."""
    return _CONTINENTAL.sub(_with_point, text)


def _with_point(number: re.Match[str]) -> str:
    """A decimal comma as a point; a pair in brackets is a list and stays."""
    start, end = number.span()
    before = number.string[max(start - 2, 0) : start].rstrip("+-")
    pair = before.endswith(("(", "[", "{")) and number.string.startswith((")", "]", "}"), end)
    if pair or _THOUSANDS.fullmatch(number[0]):
        return number[0]
    return number[0].replace(".", "").replace(",", ".")


def _value(match: re.Match[str]) -> float | None:
    sign, top, bottom, digits, ten, exponent, power, divisor, _ = match.groups()
    try:
        if digits is None:
            value = float(_fraction(top) / _fraction(bottom))
        elif divisor is not None:
            value = float(_fraction(digits) / _fraction(divisor))
        elif power is not None:
            value = float(_fraction(digits)) ** int(power)
        else:
            value = float(f"{digits.replace(',', '')}e{ten or exponent or 0}")
    except (ZeroDivisionError, OverflowError):
        return None
    return -value if sign == "-" else value


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
