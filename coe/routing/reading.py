"""Decides which units of a message are the request, which the material that it is about, and which its frame.

A small trained model (`reading.json`, by `scripts/fit_reading.py`): logistic regression on the features of each unit,
and a chain over the classes of consecutive units. The frame is what is the same around any request: instructions about
the answer, labels, courtesies, examples of a format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain, pairwise
from math import exp
from typing import Literal

import orjson

from coe.routing.units import (
    NAME_PREFIX,
    NAMING_KINDS,
    WORD_PREFIX,
    Unit,
    UnitKind,
    first_words,
    form_features,
    place_features,
)

UnitClass = Literal["request", "material", "frame"]
CLASSES: tuple[UnitClass, ...] = ("request", "material", "frame")
MODEL = "reading.json"
CERTAIN = 0.9
"""Probability of the class request above which no neighbours are asked, if it holds for all units."""
MAX_CACHED_CHARACTERS = 200
"""Longest unit whose logits are cached, which bounds the memory for them to about 2 MB."""
TINY = 1e-12
"""Smallest probability of a class."""
Scores = tuple[float, float, float]
"""One number for each of CLASSES."""


@dataclass(frozen=True, slots=True)
class ReadingModel:
    """`weights` of features and the `bias` are logits; `transitions`[relation][class
    before][class] are factors. Frames consist of the words of `known`."""

    weights: dict[str, Scores]
    known: frozenset[str]
    bias: Scores
    transitions: list[list[list[float]]]


@cache
def reading_model() -> ReadingModel:
    """The model of the package."""
    file = orjson.loads(files("coe.routing").joinpath(MODEL).read_bytes())
    prefixes = (WORD_PREFIX, NAME_PREFIX)
    known = frozenset(name.partition(" ")[2] for name in file["weights"] if name.startswith(prefixes))
    return ReadingModel(file["weights"], known, file["bias"], file["transitions"])


def has_topical_word(text: str) -> bool:
    """True if one of the first words is none that frames consist of; with no word at all, too."""
    words = first_words(text)
    return not words or not reading_model().known.issuperset(words)


def relation(before: Unit, unit: Unit) -> int:
    """Relation of a unit to the one before: 0 same paragraph, 1 same label, 2 same section, 3 new section."""
    if before.section != unit.section:
        return 3
    if before.paragraph == unit.paragraph:
        return 0
    return 1 if unit.label else 2


def class_probabilities(units: Sequence[Unit]) -> list[Scores]:
    """The probabilities of CLASSES for every unit. Labels and headings are no part of the chain."""
    model = reading_model()
    places = place_features(units)
    result = [_probabilities(unit, names, model) for unit, names in zip(units, places, strict=True)]
    if all(own[0] > CERTAIN for own in result):
        return result
    linked = [index for index, unit in enumerate(units) if not unit.is_name]
    steps = [model.transitions[relation(units[index], units[following])] for index, following in pairwise(linked)]
    after: list[Scores] = [(1.0, 1.0, 1.0)]  # what the following units say of each one, from the last to the first
    for index, step in zip(reversed(linked[1:]), reversed(steps), strict=True):
        r, m, f = _product(result[index], after[-1])
        after.append(_normalized(*(row[0] * r + row[1] * m + row[2] * f for row in step)))
    before: Scores = (1.0, 1.0, 1.0)
    for place, index in enumerate(linked):
        r, m, f = forward = _product(result[index], before)
        result[index] = _product(forward, after[-1 - place])
        if place < len(steps):
            rows = steps[place]
            before = _normalized(*(r * rows[0][k] + m * rows[1][k] + f * rows[2][k] for k in range(3)))
    return result


def _probabilities(unit: Unit, names: Sequence[str], model: ReadingModel) -> Scores:
    own = _cached_logits if len(unit.text) <= MAX_CACHED_CHARACTERS else _own_logits
    r, m, f = _sum(map(model.weights.get, names), *own(unit.text, unit.kind))
    largest = max(r, m, f)
    return _normalized(exp(r - largest), exp(m - largest), exp(f - largest))


def _own_logits(text: str, kind: UnitKind) -> Scores:
    """The logits of a unit by itself."""
    model, words, is_name = reading_model(), first_words(text), kind in NAMING_KINDS
    prefix = NAME_PREFIX if is_name else WORD_PREFIX
    weights = [model.weights.get(prefix + word) for word in dict.fromkeys(words)]
    names = (*form_features(text, kind, words), topical_feature(0 if is_name else weights.count(None)))
    return _sum(chain(map(model.weights.get, names), weights), *model.bias)


_cached_logits = lru_cache(maxsize=4096)(_own_logits)
"""The units of frames are short, and the same in many messages."""


def topical_feature(words: int) -> str:
    """The name of the feature that counts the words that frames do not consist of."""
    return f"topical words {min(4, words)}"


def _sum(weights: Iterable[Scores | None], r: float, m: float, f: float) -> Scores:
    for weight in weights:
        if weight is not None:
            r += weight[0]
            m += weight[1]
            f += weight[2]
    return r, m, f


def _product(one: Scores, other: Scores) -> Scores:
    return _normalized(one[0] * other[0], one[1] * other[1], one[2] * other[2])


def _normalized(r: float, m: float, f: float) -> Scores:
    total = r + m + f + 3 * TINY
    return (r + TINY) / total, (m + TINY) / total, (f + TINY) / total
