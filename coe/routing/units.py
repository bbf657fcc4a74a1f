"""Cuts a user message into units (sentences, labels, options, fenced text) and describes each by features.

Only structure and wording are features, no topics: whether a line is a label or an option, under which label, heading
or tag a unit stands, its place, its length, and its words. `reading` weighs them. No search backtracks over an
unbounded run.

Classifies the wording of a request: it has its own topic, only asks to continue, or starts with an instruction.

The functions use the word lists of words.toml and read a bounded number of characters.

Decides which units of a message are the request, which the material that it is about, and which its frame.

A small trained model (`reading.json`, by `scripts/fit_reading.py`): logistic regression on the features of each unit,
and a chain over the classes of consecutive units. The frame is what is the same around any request: instructions about
the answer, labels, courtesies, examples of a format.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from routers.kernel import KERNEL, KernelReading

MAX_CHARACTERS = 600
"""Characters that these functions read. A longer text is not a nudge."""
MIN_TOPIC_WORDS = 2
"""Smallest number of content words with which a request is understood without its context."""
MIN_UNSPACED_CHARACTERS = 5
"""Shortest run of Chinese, Japanese or Thai characters that counts as several words."""
UNSPACED_WORD_CHARACTERS = 3
"""Characters of such a run that count as one word."""
MAX_OWN_WORDS = 4
"""Largest number of content words that count towards a new topic."""
TOPIC_SCORE = 5.17
"""Score above which a request opens a topic: a probability of 0.7."""
MAX_COURTESY_CHARACTERS = 80
MIN_LONG_NUDGE_WORDS = 12
MAX_FOREIGN_SHARE = 0.12
"""Largest share of words outside the lists with which a longer message is still a nudge."""

_WORD = re.compile(r"[^\W\d_]++")
_FORMULA = re.compile(r"\w\s{0,2}[=+*/^]\s{0,2}\d|\d\s{0,2}[-+*/^=]\s{0,2}\w")
_NAME = re.compile(r"\d|(?<=[a-z,;:] )[A-Z][a-z]+|(?<=[a-z] )[A-Z]{2,}")
"""A number, or a word with a capital letter within a sentence."""
_UNSPACED = re.compile(rf"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]{{{MIN_UNSPACED_CHARACTERS}}}")


WORDS: Mapping[str, frozenset[str]] = {
    name: frozenset(text.split())
    for name, text in tomllib.loads(files("coe.routing").joinpath("words.toml").read_text(encoding="utf-8")).items()
}
"""The lists of words.toml."""
_NUDGING = WORDS["function"] | WORDS["handling"] | WORDS["process"]
"""Words of requests without a topic, and of those to continue."""
_CONTEXTUAL = _NUDGING | WORDS["answer"]
_REFERENCES = WORDS["pointers"] | WORDS["references"]


def has_topic(text: str) -> bool:
    """True if a request is understood without its context: two content words, a formula, or a translation."""
    if instruction(text) in WORDS["translations"]:
        return True
    text = text[:MAX_CHARACTERS].lower()
    own = set(_WORD.findall(text)) - _NUDGING
    return len(own) >= MIN_TOPIC_WORDS or any(found.search(text) for found in (_FORMULA, _UNSPACED))


def opens_topic(text: str, general: float) -> bool:
    """True if the newest request of a conversation has its own topic, so that its context does not matter.

    `general` is the probability of the category `general` for the request alone. The weights are those of a logistic
    regression on conversations whose topic changed or did not (docs/experiments/routed-text.md).
    """
    text = text[:MAX_CHARACTERS]
    said = set(_WORD.findall(text.lower()))
    if not said:
        return False
    own = sum(
        max(1, len(word) // UNSPACED_WORD_CHARACTERS) if _UNSPACED.match(word) else 1 for word in said - _CONTEXTUAL
    )
    has_name = any(found[0].lower() not in _CONTEXTUAL for found in _NAME.finditer(text))
    references = len(said & _REFERENCES) / len(said)
    bounded = min(max(general, 0.001), 0.999)
    score = 2.05 * min(own, MAX_OWN_WORDS) + 2.75 * has_name - 5.3 * references
    return score - 0.17 * math.log(bounded / (1 - bounded)) > TOPIC_SCORE


def refers_to_context(text: str) -> bool:
    """True if a short request is about something that it does not name, as in "clean up the imports"."""
    said = set(_WORD.findall(text[:MAX_CHARACTERS].lower()))
    return not said.isdisjoint(WORDS["pointers"]) or ("the" in said and instruction(text) != "")


def is_nudge(text: str) -> bool:
    """True if a message only asks to continue the task at hand."""
    if len(text) > MAX_CHARACTERS:
        return False
    said = _WORD.findall(text.lower())
    foreign = sum(word not in _NUDGING for word in said)
    return foreign == 0 or (len(said) >= MIN_LONG_NUDGE_WORDS and foreign <= MAX_FOREIGN_SHARE * len(said))


def instruction(text: str) -> str:
    """Return the first word of a text, after courtesies, if it is an instruction; or else an empty text."""
    said = _WORD.findall(text[:MAX_COURTESY_CHARACTERS].lower())
    first = next((word for word in said if word not in WORDS["courtesies"]), "")
    return first if first in WORDS["instructions"] and said[0] != "to" else ""


UnitKind = Literal["sentence", "label", "heading", "intro", "option", "bullet", "fence", "quote", "literal", "long"]

_T = TypeVar("_T")
MAX_UNITS = 150
"""Units that are read of a message; the head and the tail of a longer one, half each."""
MAX_LINES = 200
"""Lines that are read of a message, as for units."""
MAX_STRUCTURES = 200
"""Tags and pairs of a name and a value that are read of a message; further ones are text."""
MAX_SENTENCES_LINE = 3000
"""Characters of the longest line that is cut into sentences."""
MAX_UNIT_WORDS = 40
MAX_WORD_CHARACTERS = 400
"""Characters of a unit in which its words are read."""
MIN_WRAPPED_LINE = 40
"""Characters of a line that the next one may continue in lower case."""
MIN_VALUE = 12
"""Characters of the shortest value of a JSON object that is a unit."""
STEM = 6
"""Characters of a label's words that are compared, so that `passage` and `passages` are one."""

_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_TAG = re.compile(r"</?([A-Za-z][\w.:-]{0,40})(?:\s[^<>]{0,200})?/?>")
_RULE = re.compile(r"\W*+\Z")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s++(.{1,80})\Z")
_BRACKETED = re.compile(
    r"\s{0,3}(?:\[|\*\*|={2,9}|-{2,9}|<<|\|)\s{0,3}([^\]*=|<>\n-]{1,40}?)\s{0,3}(?:\]|\*\*|={2,9}|-{2,9}|>>|\|):?\Z"
)
_LABEL = re.compile(r"[\s\-*#>\[(]{0,6}([^\W\d_][\w'’ /-]{0,38}?)[\])*_ ]{0,4}(?::|=>|->)(?=\s|\Z|[\"'“])")
_OPTION = re.compile(r"\s*+(?:\(?[A-Ja-j]|\(\d{1,2})[.):]\s")
_BULLET = re.compile(r"\s*+(?:[-*•+]|\d{1,2}[.)])\s")
_PAIR = re.compile(r'"([\w ]{1,30})"\s*+:\s*+"((?:[^"\\]|\\.)*+)"')
_COMMENT = re.compile(r"\s*+(?://|--|\|)\s++")
_LITERAL = re.compile(r"\s*+(?:[{}\"\]]|\[(?!\w))")
_DIGIT = re.compile(r"[0-9]")
_CITED = re.compile(r"\[[\w ]{1,12}\]|\([0-9]\)", re.ASCII)
_SENTENCE_END = re.compile(r"(?:[.!?…][\"'”)\]]*+|:)\s++|[。！？]|[;,\t|](?=\")")
"""A mark, and what separates it from the next sentence. It consumes the mark: looking behind at every character takes
six times as long."""
_BEFORE_FULL_STOP = re.compile(r"[^\W\d]|[!?…)\"”]")
"""The character before a mark that ends a sentence: that of "3. " does not."""
_PROSE = re.compile(r"(?!\(?[A-Ja-j][.):]\s)[^\W\d_](?:[^<>|:{}`~/-]++|[/-](?![/-]))*+\Z")
"""A line that can only be sentences; most are."""
WORD_PREFIX, NAME_PREFIX = "word ", "name "
"""Prefixes in the names of features that are words: of ordinary units, and of labels and headings."""
_QUOTES = "\"'“"
_CLOSING_TAG = re.compile(r"</([A-Za-z][\w.:-]{0,40})")
_AFTER_HEADING = " \t#:"
_MIN_BRACES = 3
_ENDS_QUESTION = " \"'”)"
_MAX_LABEL_WORDS = 5
_MAX_INTRO_CHARACTERS = 140

_REQUEST_LABELS = frozenset(word[:STEM] for word in WORDS["request_labels"])


class Unit(NamedTuple):
    """One unit. `label`, `tags` and `heading` are the stems under which it stands; `near`: the label is in its
    paragraph. A label, a heading, a tag or a ruled line begins a new section. The kernel reads the fields by place."""

    text: str
    kind: UnitKind
    paragraph: int
    section: int
    label: tuple[str, ...]
    near: bool
    tags: tuple[str, ...]
    heading: tuple[str, ...]

    @property
    def is_name(self) -> bool:
        """True if it only names what follows."""
        return self.kind in ("label", "heading")


def first_words(text: str, limit: int = MAX_UNIT_WORDS) -> list[str]:
    """The first words, in lower case."""
    return _WORD.findall(text[:MAX_WORD_CHARACTERS].lower())[:limit]


def _stems(text: str, limit: int) -> tuple[str, ...]:
    return tuple([word[:STEM] for word in first_words(text, limit)])


def units_of(text: str) -> list[Unit]:
    """The units of a text, in order."""
    reader = _Reader(text)
    for line in _unwrapped(text):
        reader.read(line)
    reader.end_fence()
    return _ends(reader.units, MAX_UNITS)


def _ends(items: list[_T], limit: int) -> list[_T]:
    """The head and the tail of a long list, half of `limit` each."""
    return items if len(items) <= limit else items[: limit // 2] + items[-(limit // 2) :]


def _unwrapped(text: str) -> Iterator[str]:
    """The lines, with those joined that were broken for their length."""
    whole = ""
    for line in _ends(text.split("\n"), MAX_LINES):
        if len(whole) >= MIN_WRAPPED_LINE and line[:1].islower() and whole.rstrip()[-1:] not in ".!?:;|":
            whole = f"{whole} {line}" if len(whole) < MAX_WORD_CHARACTERS * 10 else line
            continue
        if whole:
            yield whole
        whole = line
        if not line:
            yield line
    if whole:
        yield whole


class _Reader:
    """Reads lines, and keeps the label, heading, tags and fence under which the next line stands."""

    def __init__(self, text: str) -> None:
        self.units: list[Unit] = []
        self._closed = frozenset(_CLOSING_TAG.findall(text)) if "</" in text else frozenset()
        self._paragraph = self._section = 0
        self._label: tuple[str, ...] = ()
        self._labelled = 0
        """Paragraph of the label."""
        self._heading: tuple[str, ...] = ()
        self._tags: list[str] = []
        self._fence = ""
        self._fenced: list[str] = []
        self._structures = 0
        """Tags and pairs read so far."""

    def read(self, line: str) -> None:
        """Add the units of a line."""
        line = line.rstrip()
        if not self._fence and _PROSE.match(line):
            self._add_sentences(line)
            return
        fence = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if self._fence:
            if fence is not None and fence[1] == self._fence:
                self.end_fence()
            else:
                self._fenced.append(line)
        elif fence is not None:
            self._fence = fence[1]
        elif "<" in line and self._structures < MAX_STRUCTURES and _TAG.search(line):
            self._read_tags(line)
        elif not line:
            if self.units and self.units[-1].paragraph == self._paragraph:
                self._paragraph += 1
        else:
            self._read_line(line)

    def end_fence(self) -> None:
        """Add the fenced text."""
        if self._fenced:
            self._add("\n".join(self._fenced), "fence")
        self._fence, self._fenced = "", []

    def _read_tags(self, line: str) -> None:
        position = 0
        for tag in islice(_TAG.finditer(line), MAX_STRUCTURES - self._structures):
            if tag.start() > position:
                self._add_sentences(line[position : tag.start()])
            position, name = tag.end(), tag[1]
            self._section += 1
            self._structures += 1
            if tag[0].startswith("</"):
                if name in self._tags:
                    del self._tags[self._tags.index(name) :]
            elif name in self._closed and not tag[0].endswith("/>"):
                self._tags.append(name)
        if line[position:].strip():
            self._read_line(line[position:])

    def _read_line(self, line: str) -> None:
        if _RULE.match(line):
            self._paragraph += 1
            self._set_label(())
            return
        if heading := _HEADING.match(line) or _BRACKETED.match(line):
            self._paragraph += 1
            self._set_label(())
            self._heading = ()
            self._add(heading[1].rstrip(_AFTER_HEADING), "heading")
            self._heading = _stems(heading[1], _MAX_LABEL_WORDS)
            return
        if line.startswith(">"):
            self._add(line.lstrip("> "), "quote")
            return
        pairs = list(islice(_PAIR.finditer(line), MAX_STRUCTURES - self._structures)) if '"' in line else []
        self._structures += len(pairs)
        if pairs := [pair for pair in pairs if len(pair[2]) >= MIN_VALUE]:
            for pair in pairs:
                self._set_label(_stems(pair[1], _MAX_LABEL_WORDS))
                self._add_sentences(pair[2])
            self._set_label(())
            return
        if "|" in line or "--" in line or "//" in line:
            line = _COMMENT.sub("", line)
        if not _LITERAL.match(line):
            line = self._without_label(line)
        self._add_sentences(line)

    def _without_label(self, line: str) -> str:
        """The text after a label, which it adds; an introduction, such as "Some passages that may help:", is one."""
        label = _LABEL.match(line)
        stems = _stems(label[1], _MAX_LABEL_WORDS + 1) if label else ()
        if label is None or len(stems) > _MAX_LABEL_WORDS:
            alone = line.strip(" *_")
            if not alone.endswith(":") or len(alone) > _MAX_INTRO_CHARACTERS:
                return line
            self._add(alone, "intro")
            self._set_label(_stems(alone, 3 * _MAX_LABEL_WORDS), paragraph=self._paragraph + 1)
            return ""
        self._set_label(())
        self._add(label[0], "label")
        self._set_label(stems)
        return line[label.end() :].strip(" *_")

    def _set_label(self, label: tuple[str, ...], *, paragraph: int | None = None) -> None:
        self._label, self._labelled = label, self._paragraph if paragraph is None else paragraph
        self._section += 1

    def _add_sentences(self, line: str) -> None:
        is_prose = _PROSE.match(line) is not None
        if not is_prose and _OPTION.match(line):
            self._add(line, "option")
        elif not is_prose and (
            line.count("{") + line.count("}") + line.count('":') >= _MIN_BRACES or _LITERAL.match(line)
        ):
            self._add(line, "literal")
        elif len(line) > MAX_SENTENCES_LINE:
            self._add(line, "long")
        else:
            kind: UnitKind = "bullet" if not is_prose and _BULLET.match(line) else "sentence"
            for sentence in _sentences(line):
                self._add(sentence, kind)

    def _add(self, text: str, kind: UnitKind) -> None:
        if text := text.strip():
            tags = tuple(_stems(self._tags[-1], 3)) if self._tags else ()
            near = self._labelled == self._paragraph
            self.units.append(Unit(text, kind, self._paragraph, self._section, self._label, near, tags, self._heading))


def _sentences(line: str) -> Iterator[str]:
    """The sentences of a line, each with its mark."""
    begin = 0
    for separator in _SENTENCE_END.finditer(line):
        mark = separator.start()
        if line[mark] not in ".!?…" or (mark and _BEFORE_FULL_STOP.match(line[mark - 1])):
            yield line[begin : mark + 1]
            begin = separator.end()
    yield line[begin:]


def form_features(text: str, kind: UnitKind, words: Sequence[str]) -> list[str]:
    """The names of those features that are not its words."""
    first = words[0] if words else ""
    forms = {
        "asks": first in WORDS["questions"],
        "question": is_question(text),
        "quoted": text[0] in _QUOTES,
        "digits": _DIGIT.search(text, 0, MAX_WORD_CHARACTERS),
        "no space": len(text) > MIN_VALUE and " " not in text,
        "cited": _CITED.match(text),
    }
    names = [kind, f"length {min(6, len(text) // 40)}", f"opens {first}" if words else "no words"]
    return names + [name for name, holds in forms.items() if holds]


def is_question(text: str) -> bool:
    """True if a text ends with a question mark, after which quotes may close."""
    return text.rstrip(_ENDS_QUESTION).endswith("?")


def place_features(units: Sequence[Unit]) -> list[list[str]]:
    """The names of the features that each unit has by its place among the others. A part of the message stands in one
    paragraph and section."""
    parts = [(unit.paragraph, unit.section) for unit in units]
    asked = [not _REQUEST_LABELS.isdisjoint((*unit.label, *unit.tags, *unit.heading)) for unit in units]
    has_asked = any(hit and not unit.is_name for hit, unit in zip(asked, units, strict=True))
    questions = [index for index, unit in enumerate(units) if is_question(unit.text)]
    asking = {parts[index] for index in questions}
    openings = [word for unit in units[:3] for word in first_words(unit.text, 1) or [""]]
    paragraphs, counts, lengths = Counter[int](), Counter[tuple[int, int]](), dict.fromkeys(parts, 0)
    sections: dict[tuple[str, ...], list[int]] = {}
    for part, unit in zip(parts, units, strict=True):
        paragraphs[unit.paragraph] += len(unit.text)
        if not unit.is_name:
            counts[part] += 1
            lengths[part] += len(unit.text)
            sections.setdefault(unit.label, []).append(unit.section)
    longest = max(lengths.values())
    result = []
    for index, (part, unit) in enumerate(zip(parts, units, strict=True)):
        names = [
            "only" if len(units) == 1 else "one paragraph" if len(paragraphs) == 1 else "paragraphs",
            f"paragraph {min(8, paragraphs[unit.paragraph] // 100)}",
            *(f"tag {stem}" for stem in unit.tags),
            *(f"heading {stem}" for stem in unit.heading),
            *(f"{'near' if unit.near else 'far'} label {stem}" for stem in unit.label),
            *(f"after {word}" for word in dict.fromkeys(openings[:index]) if word in WORDS["transformations"]),
            ("first", "second", "later")[min(index, 2)],
            "asked" if asked[index] else "asked elsewhere" if has_asked else "nothing asked",
            f"part {'asks' if part in asking else 'beside question' if asking else 'of no question'}"
            f"{', longest' if lengths[part] == longest else ''}, {min(3, counts[part])}",
            "question elsewhere" if questions else "no question",
        ]
        if questions:
            names.append(f"{('at', 'after', 'before')[(index > questions[-1]) - (index < questions[-1])]} question")
        same = sections.get(unit.label, []) if unit.label else []
        places = {
            "labelled": unit.label or unit.tags or unit.heading,
            "last": index == len(units) - 1,
            "last but one": index == len(units) - 2,
            "first paragraph": unit.paragraph == units[0].paragraph,
            "last paragraph": unit.paragraph == units[-1].paragraph,
            "label again": same and same[-1] > unit.section,
            "label before": same and same[0] < unit.section >= same[-1],
            "few": len(units) <= 3,
            "after colon": index and units[index - 1].text.endswith(":"),
        }
        result.append(names + [name for name, holds in places.items() if holds])
    return result


UnitClass = Literal["request", "material", "frame"]
CLASSES: tuple[UnitClass, ...] = ("request", "material", "frame")
MODEL = "reading.json"
CERTAIN = 0.9
"""Probability of the class request above which no neighbours are asked, if it holds for all units."""
TINY = 1e-12
"""Smallest probability of a class."""
Scores = tuple[float, float, float]
"""One number for each of CLASSES."""


@dataclass(frozen=True, slots=True)
class ReadingModel:
    """`weights` of features and the `bias` are logits; `transitions`[relation][class before][class] are factors. Frames
    consist of the words of `known`. `kernel` is the same model, compiled."""

    weights: dict[str, Scores]
    known: frozenset[str]
    bias: Scores
    transitions: list[list[list[float]]]
    kernel: KernelReading | None


@cache
def reading_model() -> ReadingModel:
    """The model of the package."""
    file = orjson.loads(files("coe.routing").joinpath(MODEL).read_bytes())
    weights, bias, transitions = file["weights"], file["bias"], file["transitions"]
    prefixes = (WORD_PREFIX, NAME_PREFIX)
    known = frozenset(name.partition(" ")[2] for name in weights if name.startswith(prefixes))
    return ReadingModel(weights, known, bias, transitions, _open_kernel(weights, bias, transitions))


def _open_kernel(weights: dict[str, Scores], bias: Scores, transitions: Any) -> KernelReading | None:
    if KERNEL is None:
        return None
    lists = {**WORDS, "request_labels": _REQUEST_LABELS}.items()
    listed = [f"{name}: {word}" for name, words in lists for word in words]
    letters = np.zeros(0x10000, dtype=np.uint8)
    letters[[found.start() for found in re.finditer(_WORD.pattern[:-2], "".join(map(chr, range(0x10000))))]] = 1
    return KERNEL.Reading(
        names=[*weights, *listed],
        weights=np.array([*weights.values(), *[(0.0, 0.0, 0.0)] * len(listed)]),
        bias=np.concatenate((bias, np.ravel(transitions))),
        letters=np.packbits(letters, bitorder="little").tobytes(),
    )


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


def class_probabilities(units: list[Unit]) -> list[Scores]:
    """The probabilities of CLASSES for one or more units. Labels and headings are no part of the chain."""
    model = reading_model()
    if model.kernel is not None:
        with suppress(UnicodeEncodeError):  # a lone surrogate
            return model.kernel.probabilities(units)
    return reference_probabilities(units)


def reference_probabilities(units: Sequence[Unit]) -> list[Scores]:
    """What the kernel computes, in NumPy."""
    model = reading_model()
    places = place_features(units)
    logits = np.array([_logits(unit, names, model) for unit, names in zip(units, places, strict=True)])
    result = _normalized(np.exp(logits - logits.max(axis=1, keepdims=True)))
    linked = [index for index, unit in enumerate(units) if not unit.is_name]
    if (result[:, 0] <= CERTAIN).any():
        steps = [np.array(model.transitions[relation(units[index], units[after])]) for index, after in pairwise(linked)]
        after = np.ones((len(linked), len(CLASSES)))  # what the following units say of each one
        for place in reversed(range(len(steps))):
            after[place] = _normalized(steps[place] @ _normalized(result[linked[place + 1]] * after[place + 1]))
        before = np.ones(len(CLASSES))
        for place, index in enumerate(linked):
            forward = _normalized(result[index] * before)
            result[index] = _normalized(forward * after[place])
            before = _normalized(forward @ steps[place]) if place < len(steps) else before
    return [(request, material, frame) for request, material, frame in result.tolist()]


def _logits(unit: Unit, names: Iterable[str], model: ReadingModel) -> NDArray[np.float64]:
    """The logits of a unit from its words, its form, and the names of the features of its place."""
    words = first_words(unit.text)
    prefix = NAME_PREFIX if unit.is_name else WORD_PREFIX
    own = [prefix + word for word in dict.fromkeys(words)]
    unknown = 0 if unit.is_name else sum(name not in model.weights for name in own)
    every = (*names, *own, *form_features(unit.text, unit.kind, words), topical_feature(unknown))
    rows = [model.weights[name] for name in every if name in model.weights]
    logits: NDArray[np.float64] = np.array([model.bias, *rows]).sum(axis=0)
    return logits


def topical_feature(words: int) -> str:
    """The name of the feature that counts the words that frames do not consist of."""
    return f"topical words {min(4, words)}"


def _normalized(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores as probabilities, over the last axis, none of them zero."""
    probabilities: NDArray[np.float64] = (scores + TINY) / (scores.sum(axis=-1, keepdims=True) + len(CLASSES) * TINY)
    return probabilities
