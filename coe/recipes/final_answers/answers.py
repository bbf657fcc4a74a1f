"""The normalized final answer of a response, so that responses with the same meaning give the same string.

The last statement of a response counts, such as "the answer is X" or \\boxed{X}; without one, a response that is short
or a single fenced block is the answer itself. Letters, numbers, yes and no, JSON, programs and short texts each have a
canonical form. Work is bounded on any input, and nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from coe.recipes.final_answers.choices import (
    EASTERN_ANSWER,
    LABEL,
    WESTERN_ANSWER,
    labelled_letter,
    stated_letters,
)
from coe.recipes.final_answers.numbers import BOXED, concluded_number, number_form
from coe.recipes.final_answers.programs import Block, fenced_blocks
from coe.recipes.final_answers.wording import (
    MAX_READ_CHARACTERS,
    MAX_SHORT_CHARACTERS,
    MAX_STATEMENTS,
    text_form,
)

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
