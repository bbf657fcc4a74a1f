"""Checkers: pure functions that score an answer against its reference, in [0, 1].

Answers are free text in many languages. `chosen` finds the letter of a multiple-choice answer, `last_number` the number
of a numeric one; both read the end of an answer and normalize typographic forms first.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

TOLERANCE = 1e-4
"""Default relative error of a numeric answer; two whole numbers must be equal."""
MAX_CHECKED_CHARACTERS = 50_000
"""Characters at the end of an answer that are searched for its final letter or number."""


def exact(answer: str, reference: str) -> float:
    """1.0 when both are the same text but for case, runs of white space, and punctuation at the ends."""
    return float(normalised(answer) == normalised(reference))


def contains(answer: str, reference: str) -> float:
    """1.0 when the reference occurs in the answer as whole words; in scripts that write without spaces, anywhere."""
    expected = normalised(reference)
    before = rf"(?<![{_SPACED}])" if re.match(f"[{_SPACED}]", expected) else ""
    after = rf"(?![{_SPACED}])" if re.search(f"[{_SPACED}]$", expected) else ""
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


# --------------------------------------------------------------------------------------------------------------- text

# Letters of Latin, Greek and Cyrillic, whose words stand between spaces; and those of other scripts.
_SPACED = "0-9A-Za-z\u00c0-\u052f\u1e00-\u1fff"
_UNSPACED = rf"[^\W_{_SPACED}]"


def normalised(text: str) -> str:
    """The text case-folded, with white space collapsed and punctuation stripped at both ends, except in -3, 5% and
    C#."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]) and not _MINUS.match(folded, start):
        start += 1
    while end > start and _is_edge(folded[end - 1]) and folded[end - 1] not in "%#":
        end -= 1
    return folded[start:end]


_MINUS = re.compile(r"-[\d.]")


def _is_edge(character: str) -> bool:
    return character in " `~" or unicodedata.category(character)[0] == "P"


# ------------------------------------------------------------------------------------------------------------- choice

# Every run is bounded: an answer of nothing but spaces must not hold up the checker.
_OPEN, _CLOSE = r"[\s(\[{*_\"'`$\\「『【]{0,9}", r"[)\]}*_\"'`$.,;:!。、」』】]"
_LETTER = (  # a bare I is mostly a pronoun
    rf"(?:([A-HJ])(?![{_SPACED}'’])|([A-Ja-j])(?={_CLOSE}|[ \t]{{0,9}}(?:\n|\Z)))"
    r"(?!\s?(?:では|じゃ|[가이]\s?아니))"  # a negated answer in Japanese and Korean
)
_WESTERN = (
    r"(?i:\b(?:réponse|respuesta|resposta|risposta|antwort|ответ)\b"
    r"(?:\s{1,3}(?:correcte|exacte|juste|corre[ct]{1,2}a)\b)?[*_]{0,3})"
)
_EASTERN = r"(?:答案|答え|正解|回答|解答|정?답)[*_」】\]]{0,3}"
_STATED = re.compile(
    r"(?:(?i:\b(?:answer|choice|option)[*_]{0,3}"
    r"(?:\s{1,3}(?:is|was|would\s{1,3}be|should\s{1,3}be)\b|\s{0,3}[:=]){1,3}"
    r"(?:[\s*_]{0,4}(?:definitely|clearly|most\s{1,3}likely|likely|probably|option|choice|letter)\b\s?:?){0,3})"
    rf"|{_WESTERN}(?:\s{{1,3}}(?:est|es|é|è|ist|lautet)\b|\s{{0,3}}[:=–—-]){{1,3}}"
    r"(?i:\s{1,3}(?:donc|also|la|a|die|(?:l['’])?option|opción|opção|lettre|letra|вариант)\b){0,3}"
    rf"|{_EASTERN}(?:\s{{0,3}}(?:[应應]?[该該]?[是为為]|[选選はが은는:=、,])){{1,3}}(?:\s{{0,3}}(?:[选選][项項]|選択肢))?"
    rf"|\\boxed){_OPEN}(?:text(?:bf)?[{{ ])?{_OPEN}{_LETTER}"
    r"|\b([A-J])\)?[*_]{0,3}\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right|best)\b"
)
_PICKED = re.compile(  # 选B, Antwort B: also used of other options, so it counts less
    rf"(?:{_WESTERN}|{_EASTERN}"
    r"|[选選][择擇択]?[了:は]?\s?(?:[选選][项項])?)"
    rf"{_OPEN}([A-HJ])(?![{_SPACED}'’])"
)
_MARKED = re.compile(
    r"(?<![A-Za-z0-9])[(【「]([A-J])[)】」]"  # (B)
    r"|(?<!\*)\*\*\s?\(?([A-J])(?:[).:、][^*\n]{0,500})?\s?\*\*"  # **B**, **B. text**
    rf"|^[ \t>#-]{{0,9}}\(?([A-J])[).:、](?=\s|$|{_UNSPACED})"  # B. text, at the start of a line
    r"|^[^\w\n]{0,9}([A-J])[^\w\n]{0,9}$"  # B, alone on its line
    rf"|(?:^|[\s(]|(?<={_UNSPACED}))([A-HJ])(?:です|だ|입니다|이다)?\W{{0,9}}\Z"  # ... so B
    rf"|(?:\b[Oo]ption\s{{1,3}}|(?:[选選][项項]|選択肢)\s?)([A-J])(?![{_SPACED}_])",
    re.MULTILINE,
)
_NEGATION = 60
"""Characters before a letter that are searched for a negation."""
_NEGATED = re.compile(  # not A, isn't **option A**, cannot be (A), n'est pas A, 不是A, 不能选A
    r"(?:(?i:(?:\b(?:not|never|cannot|neither|nor|nicht|pas|no\s{1,3}es|não\s{1,3}é|non\s{1,3}è|не)|n['’]t)\b"
    r"(?:[ \t*]{1,4}(?:be|choose|pick|select|option|choice|letter|answer|opción|opção|die|la|вариант)\b){0,3})"
    r"|(?:(?<![是何无無莫])(?<!不[得能可会會])不[能应應会會该該可要]{0,2}[是为為选選]"  # 不得不选B takes it
    r"|(?<![特分个個])[别勿][选選])[择擇択]?[了:は]?\s?(?:[选選][项項])?)[ \t([{*_\"'`$「『【]{0,9}\Z"
)
_OPTION_SAYS = re.compile(r"(?i:\b(?:neither|never|cannot)\b)[*_\"'\s]{0,5}[(\[]\Z")  # "it is neither (C)"
_LONE = re.compile(r"\W*([A-Ja-j])\W*")


def chosen(answer: str) -> str | None:
    """The letter that an answer settles on, upper case, or None.

    The last statement such as "the answer is (B)", "答案是B" or \\boxed{B} counts; without one, the last letter that is
    picked, as in 选B; without that, the last one marked as an option: (B), **B**, "B." at the start of a line, or alone
    at the end. Negated letters, as in "not B", do not count.
    """
    text = unicodedata.normalize("NFKC", answer[-MAX_CHECKED_CHARACTERS:])
    if lone := _LONE.fullmatch(text.strip()):
        return lone[1].upper()
    for pattern in (_STATED, _PICKED, _MARKED):
        places = [match.start(match.lastindex or 0) for match in pattern.finditer(text)]
        if letters := [text[place] for place in places if not _negated(text, place)]:
            return letters[-1].upper()
    return None


def _negated(text: str, place: int) -> bool:
    before = text[max(place - _NEGATION, 0) : place]
    if _OPTION_SAYS.search(before) and " nor " not in text[place : place + _NEGATION]:
        return False
    return _NEGATED.search(before) is not None


# ------------------------------------------------------------------------------------------------------------ numbers

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TIMES_TEN = r"\s*(?:×|·|\*|[xX]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,4})\s*\}?"
_NUMBER = re.compile(
    rf"(?<![{_SPACED}_.^])([+-]?)\$?(?:"
    rf"\\[dt]?frac\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}\s*\{{\s*([+-]?(?:{_DIGITS}))\s*\}}"
    rf"|({_DIGITS})(?:{_TIMES_TEN}|[eE]([+-]?\d{{1,4}})(?![{_SPACED}_.])|\s*(?:\^|\*\*)\s*\{{?\s*([+-]?\d{{1,3}})\s*\}}?"
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
_OTHER_DIGIT = re.compile(rf"(?<![{_SPACED}_^])\d")  # the 2 of H2O and of x_2 are of a name
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
    text = text[-MAX_CHECKED_CHARACTERS:]
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


def _close(value: float, expected: float, tolerance: float) -> bool:
    if value.is_integer() and expected.is_integer() and tolerance <= TOLERANCE:
        return value == expected
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-12)
