"""Generate simple questions for which no document is needed, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from random import Random

_OPPOSITES = (
    "hot:cold big:small up:down fast:slow day:night wet:dry old:new happy:sad open:closed early:late left:right"
)
_COLOURS = "a ripe banana:yellow grass:green fresh snow:white a clear sky:blue coal:black a ripe tomato:red"
_SOUNDS = "a dog:bark a cat:meow a cow:moo a duck:quack a lion:roar a sheep:baa"
_PLURALS = "cat:cats box:boxes child:children mouse:mice leaf:leaves city:cities foot:feet woman:women"
_WORDS = "river lamp silver garden window paper orange bridge cloud market needle forest candle mirror"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

Question = tuple[str, str]


def plain_questions(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Return `count` different questions, each with the words that a correct answer contains."""
    random = Random(seed)
    kinds = [_sums(random), _echoes(random), _next_days(), _letters(random), _choices(random)]
    kinds += [_pairs(pairs, ask) for pairs, ask in _ASKED]
    found: dict[str, str] = {}
    for kind in cycle(kinds):
        if len(found) == count:
            break
        question, answer = next(kind, ("", ""))
        if question:
            found.setdefault(question, answer)
    return list(found.items())


_ASKED = (
    (_OPPOSITES, "What is the opposite of {}? Answer with one word."),
    (_COLOURS, "What colour is {}? Answer with one word."),
    (_SOUNDS, "Which sound does {} make? Answer with one word."),
    (_PLURALS, "What is the plural of {}? Answer with one word."),
)


def _pairs(pairs: str, ask: str) -> Iterator[Question]:
    for pair in _split(pairs):
        thing, _, answer = pair.partition(":")
        yield ask.format(thing), answer


def _split(pairs: str) -> list[str]:
    """Split at the spaces that follow an answer."""
    found, words = [], list[str]()
    for word in pairs.split():
        words.append(word)
        if ":" in word:
            found.append(" ".join(words))
            words = []
    return found


def _sums(random: Random) -> Iterator[Question]:
    while True:
        a, b = random.randint(1, 12), random.randint(1, 9)
        yield f"How much is {a} plus {b}? Answer with the number.", str(a + b)


def _echoes(random: Random) -> Iterator[Question]:
    while True:
        a, b = random.sample(_WORDS.split(), 2)
        yield f"Repeat these two words and say nothing else: {a} {b}", f"{a} {b}"


def _letters(random: Random) -> Iterator[Question]:
    while True:
        letter = random.choice("ABCDEFGHIJKLMNOPQRSTUVWXY")
        yield f"Which letter comes after {letter} in the alphabet? Answer with the letter.", chr(ord(letter) + 1)


def _choices(random: Random) -> Iterator[Question]:
    while True:
        a, b = random.sample(_WORDS.split(), 2)
        yield f"Write the word {a} in capital letters, not the word {b}.", a.upper()


def _next_days() -> Iterator[Question]:
    days = _DAYS.split()
    for day, after in zip(days, days[1:] + days[:1], strict=True):
        yield f"Which day comes after {day}? Answer with one word.", after
