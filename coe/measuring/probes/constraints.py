"""Constraints on the form of an answer: counts, required and forbidden words, order, format, case and language.

They check instructions that have no single right answer, such as a poem of four lines without the letter e. Each
constraint is a key of the probe's `constraints`; an answer passes when it meets all of them. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import orjson

from coe.measuring.checkers import contains
from coe.measuring.probes.languages import LANGUAGES, language_of
from coe.recipes.final_answers.answers import without_reasoning
from coe.recipes.final_answers.programs import fenced_blocks
from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, normalised

_WORD = re.compile(r"[^\W\d_](?:\.[^\W\d_]){1,9}(?!\w)\.?|\w+(?:(?:['’-]|(?<=\d)[.:,](?=\d))\w+){0,9}")
"""An abbreviation of single letters such as p.m., or a word; 3:00, 1,000 and 2.5 are words."""
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)*_]{0,3}(?=\s|\Z)|[。！？]")
_TITLE = re.compile(r"\b(?:Dr|Mrs?|Ms|Prof|St)\.\Z")
_LOWER_CASE_NEXT = re.compile(r"[ \t]+[\"'“‘(*_]{0,3}([^\W\d_])")
_STRAIGHT = str.maketrans("‘’", "''")
_BULLET = re.compile(r"[-*•]\s")
_NUMBER = re.compile(r"(\d{1,3})[.)]\s")
FORMATS = ("json", "bullets", "numbered")
CASES = ("lower", "upper")


def meets(answer: str, constraints: Mapping[str, Any]) -> float:
    """1.0 when an answer, without its reasoning, meets all constraints. An empty answer meets none."""
    text = body_of(answer)
    return float(bool(text) and all(_MET[name](text, wanted) for name, wanted in constraints.items()))


def body_of(answer: str) -> str:
    """Return the text to check: the answer without reasoning and bold marks, with straight apostrophes; the content of
    an answer that is one fenced block."""
    text = without_reasoning(answer)[:MAX_READ_CHARACTERS]
    blocks = list(fenced_blocks(text))
    if len(blocks) == 1 and text.startswith(("```", "~~~")) and blocks[0].end >= len(text) - 4:
        text = blocks[0].text
    return _straight(text.replace("**", "")).strip()


def _straight(text: str) -> str:
    return text.translate(_STRAIGHT)


def problem_in(constraints: Any) -> str | None:
    """Return the problem of the `constraints` of a probe, and the remedy; None for valid ones."""
    if not isinstance(constraints, dict) or not constraints:
        return f"checker 'constraints' needs `constraints`: an object with some of {', '.join(_MET)}"
    for name, wanted in constraints.items():
        if name not in _MET:
            close = get_close_matches(str(name), _MET, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(_MET)}"
            return f"`constraints` has the unknown key {name!r}{hint}"
        if why := _FORM[name](wanted):
            return f"`constraints.{name}` {why}"
    return None


# ------------------------------------------------------------------------------------------------- what is counted


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _words(text: str) -> int:
    return sum(1 for _ in _WORD.finditer(text))


def _sentences(text: str) -> list[str]:
    """Return the sentences; what follows the last end of a sentence counts as one if it has a word.

    A title such as Dr. ends none, and a lower-case letter begins none, except in a text without capitals.
    """
    has_capitals = text != text.lower()
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if not _goes_on(text, match, has_capitals)]
    parts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    rest = text[ends[-1] :] if ends else text
    return [*parts, rest] if _WORD.search(rest) else parts


def _goes_on(text: str, end: re.Match[str], has_capitals: bool) -> bool:
    """Return whether a sentence continues after its apparent end."""
    if _TITLE.search(text, max(0, end.start() - 5), end.start() + 1):
        return True
    following = _LOWER_CASE_NEXT.match(text, end.end()) if has_capitals else None
    return following is not None and following[1].islower()


def _paragraphs(text: str) -> int:
    return len([part for part in re.split(r"\n[ \t]*\n", text) if part.strip()])


def _within(count: int, wanted: int | Sequence[int]) -> bool:
    return count == wanted if isinstance(wanted, int) else wanted[0] <= count <= wanted[1]


def _is_count(wanted: Any) -> str | None:
    whole = [wanted] if isinstance(wanted, int) else wanted
    good = isinstance(whole, list) and all(type(one) is int and one >= 0 for one in whole)
    if good and (isinstance(wanted, int) or (len(whole) == 2 and whole[0] <= whole[1])):
        return None
    return "must be a whole number, or [least, most]"


def _is_counts_in_order(wanted: Any) -> str | None:
    good = isinstance(wanted, list) and wanted and all(type(one) is int and one >= 0 for one in wanted)
    return None if good else "must be a list of whole numbers"


# ------------------------------------------------------------------------------------------------ what must occur


def _includes(text: str, wanted: Sequence[str | Sequence[str]]) -> bool:
    each = ([one] if isinstance(one, str) else one for one in wanted)
    return all(any(contains(text, _straight(form)) for form in forms) for forms in each)


def _substrings(text: str, wanted: Sequence[str | Sequence[str]]) -> bool:
    folded = text.casefold()
    each = ([one] if isinstance(one, str) else one for one in wanted)
    return all(any(_straight(form).casefold() in folded for form in forms) for forms in each)


def _excludes(text: str, wanted: Sequence[str]) -> bool:
    return not any(contains(text, _straight(one)) for one in wanted)


def _without(text: str, wanted: Sequence[str]) -> bool:
    folded = text.casefold()
    return not any(one.casefold() in folded for one in wanted)


def _order(text: str, wanted: Sequence[str]) -> bool:
    folded, place = " ".join(text.casefold().split()), 0
    for one in wanted:
        if (found := folded.find(one.casefold(), place)) < 0:
            return False
        place = found + len(one)
    return True


def _occurrences(text: str, wanted: Mapping[str, int | Sequence[int]]) -> bool:
    words = [match[0].casefold() for match in _WORD.finditer(text)]
    return all(_within(words.count(word.casefold()), count) for word, count in wanted.items())


def _initials(text: str, wanted: str) -> bool:
    firsts = [match[0][0] for line in _lines(text) if (match := _WORD.search(line))]
    return "".join(firsts).casefold() == wanted.casefold()


# -------------------------------------------------------------------------------------------------- what it looks like


def _format(text: str, wanted: str) -> bool:
    if wanted == "json":
        return json_in(text) is not None
    lines = _lines(text)
    if wanted == "bullets":
        return all(_BULLET.match(line) for line in lines)
    return [found[1] if (found := _NUMBER.match(line)) else "" for line in lines] == [
        str(number) for number in range(1, len(lines) + 1)
    ]


def json_in(text: str) -> Any:
    """Return the JSON object or list that a text consists of; None for any other text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict | list) else None


def _keys(text: str, wanted: Sequence[str]) -> bool:
    value = json_in(text)
    return isinstance(value, dict) and sorted(value) == sorted(wanted)


def _case(text: str, wanted: str) -> bool:
    return text == (text.lower() if wanted == "lower" else text.upper())


def _ends_with(text: str, wanted: str) -> bool:
    return normalised(text).endswith(normalised(wanted))


_Check = Callable[[str, Any], bool]
_MET: Mapping[str, _Check] = {
    "words": lambda text, wanted: _within(_words(text), wanted),
    "sentences": lambda text, wanted: _within(len(_sentences(text)), wanted),
    "lines": lambda text, wanted: _within(len(_lines(text)), wanted),
    "paragraphs": lambda text, wanted: _within(_paragraphs(text), wanted),
    "characters": lambda text, wanted: _within(len(text), wanted),
    "line_words": lambda text, wanted: all(_within(_words(line), wanted) for line in _lines(text)),
    "words_by_line": lambda text, wanted: [_words(line) for line in _lines(text)] == wanted,
    "words_by_sentence": lambda text, wanted: [_words(one) for one in _sentences(text)] == wanted,
    "includes": _includes,
    "substrings": _substrings,
    "excludes": _excludes,
    "without": _without,
    "order": _order,
    "occurrences": _occurrences,
    "initials": _initials,
    "starts_with": lambda text, wanted: normalised(text).startswith(normalised(wanted)),
    "ends_with": _ends_with,
    "format": _format,
    "keys": _keys,
    "case": _case,
    "language": lambda text, wanted: language_of(text) == wanted,
}


def _is_one_of(allowed: Sequence[str]) -> Callable[[Any], str | None]:
    return lambda wanted: None if wanted in allowed else f"must be one of {', '.join(allowed)}"


def _is_text(wanted: Any) -> str | None:
    return None if isinstance(wanted, str) and normalised(wanted) else "must be text that is not only punctuation"


def _is_list(wanted: Any) -> str | None:
    good = isinstance(wanted, list) and wanted and all(isinstance(one, str) and one.strip() for one in wanted)
    return None if good else "must be a list of texts"


def _is_list_of_words(wanted: Any) -> str | None:
    return _is_list(wanted) or next((f"has {one!r}: {why}" for one in wanted if (why := _is_text(one))), None)


def _is_list_of_forms(of_each: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """Return the check of a list of texts or lists of alternatives, each of which meets `of_each` as a list."""

    def problem(wanted: Any) -> str | None:
        forms = [one if isinstance(one, list) else [one] for one in wanted] if isinstance(wanted, list) else []
        if not forms or not all(forms) or any(of_each(one) for one in forms):
            return "must be a list of texts, each of which may be a list of equivalent ones"
        return None

    return problem


def _is_counts(wanted: Any) -> str | None:
    if not isinstance(wanted, dict) or not wanted or any(_is_count(count) for count in wanted.values()):
        return "must map words to counts, each a whole number or [least, most]"
    return None


_FORM: Mapping[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(("words", "sentences", "lines", "paragraphs", "characters", "line_words"), _is_count),
    **dict.fromkeys(("words_by_line", "words_by_sentence"), _is_counts_in_order),
    "includes": _is_list_of_forms(_is_list_of_words),
    "substrings": _is_list_of_forms(_is_list),
    "excludes": _is_list_of_words,
    "without": _is_list,
    "order": _is_list,
    "keys": _is_list,
    "occurrences": _is_counts,
    **dict.fromkeys(("initials", "starts_with", "ends_with"), _is_text),
    "format": _is_one_of(FORMATS),
    "case": _is_one_of(CASES),
    "language": _is_one_of(LANGUAGES),
}
