"""Finds the letter of a multiple-choice answer, in many languages."""

from __future__ import annotations

import re
import unicodedata

from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, MAX_STATEMENTS, SPACED, UNSPACED

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
