r"""The normalized final answer of a response, so that responses with the same meaning give the same string.

The last statement of a response counts, such as "the answer is X" or \boxed{X}; without one, a response that is short
or a single fenced block is the answer itself. Letters of choices, numbers (decimal commas, fractions, powers and per
cent, in digits of any script), yes and no, JSON, programs and short texts each have a canonical form. Recipes do not
compare longer text, because its wording is not evidence of agreement. Work is bounded on any input, and nothing raises.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import orjson

MAX_READ_CHARACTERS = 50_000
"""Characters at the end of an answer that are searched for its final letter, number or text."""
MAX_STATEMENTS = 50
"""Statements of a kind in them that are read, the last ones: the last that can be read counts."""

# Letters of Latin, Greek and Cyrillic, whose words stand between spaces; and those of other scripts.
SPACED = "0-9A-Za-z\u00c0-\u052f\u1e00-\u1fff"
UNSPACED = rf"[^\W_{SPACED}]"


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


MAX_SHORT_WORDS = 12
MAX_SHORT_CHARACTERS = 160
"""Limits of a short answer; longer text is free text, whose wording is not evidence of agreement."""

_QUOTES = str.maketrans({"’": "'", "‘": "'"} | dict.fromkeys('"“”«»„`'))
_PARTED = re.compile(r"[,;:!?]+(?=\s|$)|(?<=\d)[,;](?=\S)|\.(?=\s|$)|(?<=[^\W\d])[-‐‑](?=[^\W\d])")
_ARTICLES = re.compile(r"^(?:(?:an?|the)\s+)+(?=\S)|(?<=\s)the\s+(?=\S)")
_LATEX = re.compile(r"\\(?:left|right|displaystyle|[,;!:])|(?<=\\)[dt](?=frac)|[\s$]+")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]{0,80})\}")
_LATEX_GROUP = re.compile(r"(?<=[\^_])\{(\w)\}")


def text_form(text: str) -> str | None:
    """Return a short text without case, quotes, articles and punctuation between words; None for empty or long text."""
    if len(text) > MAX_SHORT_CHARACTERS:
        return None
    text = _LATEX_TEXT.sub(r"\1", text)
    if re.search(r"[\\^{]", text):
        if text.count("{") != text.count("}"):  # cut off
            return None
        return _LATEX_GROUP.sub(r"\1", _LATEX.sub("", text)).strip(".,") or None
    plain = _PARTED.sub(" ", normalised(text.translate(_QUOTES).replace("**", "")))
    found = _ARTICLES.sub("", normalised(plain))
    return found if found and len(found.split()) <= MAX_SHORT_WORDS else None


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
    return _led_number(text, lambda before: _LEAD.fullmatch(before) is not None)


def concluded_number(sentence: str) -> str | None:
    """Return the value of the only number of a sentence that ends with it: "She has 42 eggs left.", "6 * 7 = 42"."""
    left, equals, right = sentence.rpartition("=")
    if equals and not _SEVERAL.search(left) and (found := number_form(right)) is not None:
        return found
    return _led_number(sentence, lambda before: _CLAUSE.search(before) is not None)


def _led_number(text: str, leads: Callable[[str], bool]) -> str | None:
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


# Every run is bounded: an answer of nothing but spaces must not hold up the checker.
_OPEN, _CLOSE = r"[\s(\[{*_\"'`$\\「『【]{0,9}", r"[)\]}*_\"'`$.,;:!。、」』】]"
_LETTER = (  # a bare I is mostly a pronoun
    rf"(?:([A-HJ])(?![{SPACED}'’])|([A-Ja-j])(?={_CLOSE}|[ \t]{{0,9}}(?:\n|\Z)))"
    r"(?!\s?(?:では|じゃ|[가이]\s?아니))"  # a negated answer in Japanese and Korean
)
WESTERN_ANSWER = (
    r"(?i:\b(?:réponse|respuesta|resposta|risposta|antwort|ответ)\b"
    r"(?:\s{1,3}(?:correcte|exacte|juste|corre[ct]{1,2}a)\b)?[*_]{0,3})"
)
EASTERN_ANSWER = r"(?:答案|答え|正解|回答|解答|정?답)[*_」】\]]{0,3}"
_STATED = re.compile(
    r"(?:(?i:\b(?:answer|choice|option)[*_]{0,3}"
    r"(?:\s{1,3}(?:is|was|would\s{1,3}be|should\s{1,3}be)\b|\s{0,3}[:=]){1,3}"
    r"(?:[\s*_]{0,4}(?:definitely|clearly|most\s{1,3}likely|likely|probably|option|choice|letter)\b\s?:?){0,3})"
    rf"|{WESTERN_ANSWER}(?:\s{{1,3}}(?:est|es|é|è|ist|lautet)\b|\s{{0,3}}[:=–—-]){{1,3}}"
    r"(?i:\s{1,3}(?:donc|also|la|a|die|(?:l['’])?option|opción|opção|lettre|letra|вариант)\b){0,3}"
    rf"|{EASTERN_ANSWER}(?:\s{{0,3}}(?:[应應]?[该該]?[是为為]|[选選はが은는:=、,])){{1,3}}(?:\s{{0,3}}(?:[选選][项項]|選択肢))?"
    rf"|\\boxed){_OPEN}(?:text(?:bf)?[{{ ])?{_OPEN}{_LETTER}"
    r"|\b([A-J])\)?[*_]{0,3}\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right|best)\b"
)
_PICKED = re.compile(  # 选B, Antwort B: also used of other options, so it counts less
    rf"(?:{WESTERN_ANSWER}|{EASTERN_ANSWER}"
    r"|[选選][择擇択]?[了:は]?\s?(?:[选選][项項])?)"
    rf"{_OPEN}([A-HJ])(?![{SPACED}'’])"
)
_MARKED = re.compile(
    r"(?<![A-Za-z0-9])[(【「]([A-J])[)】」]"  # (B)
    r"|(?<!\*)\*\*\s?\(?([A-J])(?:[).:、][^*\n]{0,500})?\s?\*\*"  # **B**, **B. text**
    rf"|^[ \t>#-]{{0,9}}\(?([A-J])[).:、](?=\s|$|{UNSPACED})"  # B. text, at the start of a line
    r"|^[^\w\n]{0,9}([A-J])[^\w\n]{0,9}$"  # B, alone on its line
    rf"|(?:^|[\s(]|(?<={UNSPACED}))([A-HJ])(?:です|だ|입니다|이다)?\W{{0,9}}\Z"  # ... so B
    rf"|(?:\b[Oo]ption\s{{1,3}}|(?:[选選][项項]|選択肢)\s?)([A-J])(?![{SPACED}_])",
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
    text = unicodedata.normalize("NFKC", answer[-MAX_READ_CHARACTERS:])
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


_LABELLED = re.compile(  # (B) Paris, B. Paris, but not J. K. Rowling
    rf"\W{{0,9}}(?:(?i:option|choice|answer)\s)?[(\[]?([A-J])[)\].:、][*_]{{0,3}}(?=\s|{UNSPACED})(?!\s{{1,3}}[A-Z]\.)"
)
LABEL = re.compile(r"^[ \t>#*-]{0,9}\(?([A-J])[).:、](?=[\s*])", re.MULTILINE)
"""The letter at the start of a line, as in a list of options."""
_EMPHASISED = re.compile(r"\W{0,9}(?:(?i:option|choice)\s)?\W{0,4}([A-J])\W{0,9}")
_SETTLES = re.compile(
    r"(?i:\b(?:must\s{1,3}be|choose|chose|pick|select|go\s{1,3}with|thus|therefore|hence|so\s{1,3}(?:it|i|we|the))\b)|[选選]"
)
_GRADE = re.compile(rf"(?<![{SPACED}])[A-Ja-j](?:[+#°]|-(?![{SPACED}]))")


def stated_letters(text: str) -> list[tuple[int, str]]:
    """Return the place and the letter of each statement such as "the answer is (B)", in order, without negated ones.

    C++ and B- are not choices.
    """
    found = []
    for pattern in (_STATED, _PICKED):
        for match in list(pattern.finditer(text))[-MAX_STATEMENTS:]:
            place = match.start(match.lastindex or 0)
            if not _GRADE.match(text, place) and not _negated(text, place):
                found.append((place, text[place].upper()))
    return sorted(found)


def labelled_letter(line: str) -> str | None:
    """Return the letter of a line that is a choice: B, (b), **B**, "B. Paris", "Option B", "so it must be B"."""
    if _GRADE.search(line):
        return None
    if lone := _LONE.fullmatch(line):
        return lone[1].upper()
    if _SETTLES.search(line) and (settled := chosen(line)) is not None:
        return settled
    found = _EMPHASISED.fullmatch(line) or _LABELLED.match(line)
    return found[1] if found and not _negated(line, found.start(1)) else None


MAX_UNFENCED_LINES = 5_000
"""Lines of an answer without fences that are searched for a program."""
_FENCE = re.compile(
    r"^[ \t]{0,3}(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^\n]*+\n(.*?)(^[ \t]{0,3}\1|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "py", "python3")
_PROGRAM_START = re.compile(r"(?:async def|def|class|import|from|@)\b|@")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language in lower case, its text, the place where it ends in the answer, and whether its
    fence is closed."""

    language: str
    text: str
    end: int
    is_closed: bool


def fenced_blocks(answer: str) -> Iterator[Block]:
    """Yield the fenced blocks of an answer; the last one may be left open."""
    for match in _FENCE.finditer(answer):
        yield Block(match[2].lower(), match[3], match.end(), bool(match[4]))


def program_of(answer: str) -> str:
    """The Python program in an answer; empty when there is none.

    Fenced blocks that define something are joined, or all blocks if none does: the others are mostly examples of use. A
    last fence may be left open. Without fences, the program is the text from the first definition or import to the last
    line that still parses.
    """
    blocks = [block.text for block in fenced_blocks(answer) if block.language in _PYTHON]
    if blocks:
        return "\n".join([block for block in blocks if _defines(block)] or blocks)
    return _unfenced(answer.splitlines()[:MAX_UNFENCED_LINES])


def _defines(block: str) -> bool:
    tree = _parse(block)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(tree, ast.Module) and any(isinstance(node, kinds) for node in tree.body)


def _unfenced(lines: list[str]) -> str:
    first = next((index for index, line in enumerate(lines) if _PROGRAM_START.match(line)), None)
    if first is None:
        whole = "\n".join(lines)
        return whole if isinstance(_parse(whole), ast.Module) else ""
    kept = lines[first:]
    while kept:
        program = "\n".join(kept)
        error = _parse(program)
        if isinstance(error, ast.Module):
            return program
        # text after the mistake cannot belong to the program: cut there, at least one line
        kept = kept[: min(getattr(error, "lineno", None) or len(kept), len(kept)) - 1]
    return ""


def _parse(program: str) -> ast.Module | Exception:
    """Return the syntax tree, or the error of a text that is no program."""
    try:
        with warnings.catch_warnings():  # of invalid escapes
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return error


MAX_PASSES = 4
"""Passes until the form of an answer no longer changes; an answer that needs more has no form."""
MAX_REMARK_CHARACTERS = 400
"""A response that begins with yes or no means it up to this length; a longer one may only be polite."""
_REASONING = re.compile(r"\s*<think>")
_STATEMENT = re.compile(
    r"(?:(?i:\banswer[*_]{0,3}(?:\sto\s(?:the|this|your)\s(?:question|problem|puzzle))?"
    r"(?:\s{1,3}(?:is|are|was|would\s{1,3}be|should\s{1,3}be)\b|\s{0,3}[:=]))"
    r"|(?i:^[#*\s]{0,9}(?:(?:the|final|correct)\s){0,2}answer[*#: ]{0,9}\n)"
    rf"|{WESTERN_ANSWER}(?:\s{{1,3}}(?:est|es|é|è|ist|lautet)\b|\s{{0,3}}[:=–—-])"
    rf"|{EASTERN_ANSWER}\s{{0,3}}[是为為はが은는:=])"
    r"[\s*_:]{0,9}([^\n]{1,400})"
    r"|<answer>\s{0,9}((?:[^<]){1,2000})</answer>"
    r"|^\s{0,3}####\s{0,3}([^\n]{1,100})\Z",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\b[DMS]r)(?<!\b[MSFJ]t)(?<!\bJr)(?<!\b(?:No|Ms|vs|Co))(?<!\b(?:Mrs|Inc|Ltd|etc))[.!?][*_)]{0,3}\s"
    r"|[。！？]|\s\(|;\s|,?\s(?:because|since)\b"
)
_YES_OR_NO = re.compile(
    r"\W{0,9}(yes|no|true|false)(?:\W{0,9}\Z|[*_]{0,3}[,.!:;](?=[\s*])|[*_]{0,3}\s[–—-]\s)", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"\W{0,9}(?:(?:i\sam|i'm)\s(?:(?:very|so|really|truly|just)\s)?(?:sorry|unable|afraid|not\s(?:able|sure|certain))\b"
    r"|(?:sorry|apologies)\b|i\sapologi[sz]e\b|(?:unfortunately,?\s)?i\s(?:can't|cannot|can\snot|won't|will\snot"
    r"|(?:don't|do\snot)\s(?:know|have)|have\sno\sidea|must\sdecline)\b|as\san?\s(?:ai|large\slanguage)\b"
    r"|no\s(?:idea|answer)\b|je\sne\s(?:peux|sais)\spas\b|je\ssuis\sdésolé|lo\ssiento\b|no\s(?:puedo|sé)\b"
    r"|(?:es\s)?tut\smir\sleid\b|ich\s(?:kann|weiß)\b[^.]{0,40}\bnicht\b|desculpe\b|mi\sdispiace\b"
    r"|抱歉|对不起|對不起|我(?:无法|無法|不能|不知道)|申し訳|すみません|わかりません|죄송)",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\W{0,9}(?:therefore|thus|hence|so|consequently|altogether|finally|in\stotal)\b,?", re.IGNORECASE
)
_WORD_AFTER_A = re.compile(r"A\s(?!(?:because|since|as|for|and|which|due|given|is|but|not|in|by)\b)[a-z]")
_PLAIN_LANGUAGES = ("", "text", "txt", "plaintext", "markdown", "md", "latex", "tex")
_VALUES = ("yes", "no", "true", "false")


def final_answer(text: str) -> str | None:
    """Return the normalized final answer of a response.

    None for empty, refused and cut-off responses, and for long free text that states no answer. The final answer of a
    result is that result.
    """
    found = _form(text)
    for _ in range(MAX_PASSES):
        again = None if found is None else _form(found)
        if again == found:
            return found
        found = again
    return None


def _form(text: str) -> str | None:
    answer = without_reasoning(text)
    if not answer:
        return None
    if len(answer) > MAX_READ_CHARACTERS:
        end = answer[-MAX_READ_CHARACTERS:]
        return _stated(end, _statements(end))
    if (value := json_form(answer)) is not None:
        return value
    if blocks := list(fenced_blocks(answer)):
        return _of_blocks(answer, blocks)
    is_cut = answer.startswith("{") and not answer.endswith("}")
    return None if is_cut else _of_prose(answer.replace("’", "'").replace("：", ":"))


def without_reasoning(text: str) -> str:
    """Return the response after its reasoning; empty where the reasoning is cut off."""
    _, marker, after = text.rpartition("</think>")
    if not marker and _REASONING.match(text):
        return ""
    return (after if marker else text).strip()


# -------------------------------------------------------------------------------------------------- JSON and blocks


def _of_blocks(answer: str, blocks: list[Block]) -> str | None:
    """Return the value that is stated after the last fenced block, else the content of a single block of JSON or of one
    line of text. Programs have no form."""
    last = blocks[-1]
    after = answer[last.end :] if last.is_closed else ""
    stated = _stated(after, _statements(after))
    if stated is not None and (len(stated) == 1 or stated in _VALUES or number_form(stated) == stated):
        return stated
    if len(blocks) == 1 and last.is_closed:
        content = last.text.strip()
        if (value := json_form(content)) is not None:
            return value
        if last.language in _PLAIN_LANGUAGES and "\n" not in content:
            return _short_form(content)
    return None


def json_form(text: str) -> str | None:
    """Return a JSON object or list with sorted keys and numbers by value."""
    text = text.strip()
    if not (text.startswith(("{", "[")) and text.endswith(("}", "]"))):
        return None
    try:
        return orjson.dumps(_by_value(orjson.loads(text)), option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError, RecursionError):
        return None


def _by_value(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _by_value(part) for key, part in value.items()}
    return [_by_value(part) for part in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------- prose


def _of_prose(text: str) -> str | None:
    statements = _statements(text)
    stated = _stated(text, statements)
    if stated is not None or any(_REFUSAL.match(part) for part in (text, *(content for _, content in statements))):
        return stated
    if len(text) <= MAX_SHORT_CHARACTERS and "\n" not in text:
        return _short_form(text)
    return _concluded(text)


def _stated(text: str, statements: Sequence[tuple[int, str]]) -> str | None:
    """Return the form of the last answer that a text states, in one of the `statements` or as a letter."""
    found = [(place, form) for place, content in statements if (form := _short_form(content)) is not None]
    found += [(place, letter) for place, letter in stated_letters(text) if not _WORD_AFTER_A.match(text, place)]
    return max(reversed(found), key=lambda one: one[0])[1] if found else None


def _statements(text: str) -> list[tuple[int, str]]:
    """Return the place and the content of the last MAX_STATEMENTS statements, each up to the end of its sentence."""
    found = [
        (match.start(match.lastindex or 0), _SENTENCE_END.split(match[match.lastindex or 0], maxsplit=1)[0])
        for match in _STATEMENT.finditer(text)
    ]
    return sorted(found + [(match.start(1), match[1]) for match in BOXED.finditer(text)])[-MAX_STATEMENTS:]


def _short_form(text: str) -> str | None:
    """Return the form of a text that is the answer as a whole."""
    text = text.strip()
    if len(text) > MAX_SHORT_CHARACTERS or _REFUSAL.match(text):
        return None
    if (found := json_form(text) or labelled_letter(text)) is not None:
        return found
    if decided := _YES_OR_NO.match(text):
        return decided[1].lower()
    return number_form(text) or concluded_number(text) or text_form(text)


def _concluded(text: str) -> str | None:
    """Return the answer that the first or the last line of a longer text gives, None for free text."""
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    first, last = lines[0][:MAX_REMARK_CHARACTERS], lines[-1][-MAX_REMARK_CHARACTERS:]
    is_single = len(set(LABEL.findall(text))) <= 1 and len(last) <= MAX_SHORT_CHARACTERS
    if is_single and (letter := labelled_letter(last) or labelled_letter(first)) is not None:
        return letter
    if len(text) <= MAX_REMARK_CHARACTERS and (decided := _YES_OR_NO.match(text)):
        return decided[1].lower()
    sentence = next((part for part in reversed(_SENTENCE_END.split(last)) if part.strip()), "")
    cue = _CONCLUSION.match(sentence)
    if cue or "=" in sentence or "**" in sentence:
        return number_form(sentence[cue.end() if cue else 0 :]) or concluded_number(sentence)
    return number_form(last) if not any(map(str.isalpha, last)) else None
