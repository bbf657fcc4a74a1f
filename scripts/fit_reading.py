"""Fits coe/routing/reading.json, the model that tells the request in a message from its material and its frame.

    python -m scripts.fit_reading --data DIR [--messages N] [--out FILE]

It writes messages at random: a starter prompt or a public one (DIR/category/train.parquet) as the request, passages
(reading_passages.jsonl) as material, and frames made of the sentences and labels of reading_frames.yaml. Others are
made from reading_templates.yaml, the templates of benchmarks/templates.yaml that are not held out, and the clients of
benchmarks/boilerplate_wrappers.py. Since it wrote each message, it knows the class of each unit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ruamel.yaml import YAML
from scipy.sparse import csr_matrix

from benchmarks.boilerplate_wrappers import WRAPPERS
from coe.routing import units as reading
from coe.routing.message_parts import MessageParts, take_blocks
from coe.routing.units import NAME_PREFIX, WORD_PREFIX, Unit

REQUEST, MATERIAL, FRAME = range(3)
Piece = tuple[str, int]
"""A part of a message, and its class."""
Form = Callable[[list[Piece]], list[Piece | str]]
"""Puts a request into a message; texts without a class are its frame."""
HERE = Path(__file__).parent
STYLES = ("colon",) * 5 + ("hash",) * 3 + ("bracket", "bold", "tag", "tag", "ruled")
SHARES = {"template": 0.5, "client": 0.1}
MIN_FRAME_SHARE, MIN_FRAME_TEXTS = 0.05, 4
"""A word is a feature if at least this share of its units are frames, in so many different texts, or if it is one of
the commonest. The words of a single template would be learned by heart."""
COMMON_WORDS = 250
SEED = 7
INVERSE_REGULARIZATION = 0.7
TRANSITION_POWER = 0.7
"""Exponent of the factors between consecutive classes, whose features already tell a part of it."""


class Writer:
    """Writes random messages. `passages` are the texts of material."""

    def __init__(self, frames: dict[str, Any], requests: Sequence[str], passages: Sequence[str], rng: Random) -> None:
        self._frames = {name: value.split() if isinstance(value, str) else value for name, value in frames.items()}
        self._requests, self._passages, self._rng = requests, passages, rng
        templates = YAML(typ="safe").load(HERE.parent / "benchmarks" / "templates.yaml")
        turns = [turn for one in templates if not one.get("held_out") for turn in one["turns"]]
        self._templates = [turn["user"] for turn in turns if "{{question}}" in turn.get("user", "")]
        self._templates += [one["text"] for one in YAML(typ="safe").load(HERE / "reading_templates.yaml")]

    def message(self) -> list[Piece]:
        """The pieces of a random message."""
        kind = self._rng.random()
        if kind < SHARES["template"]:
            return self._from_template(self._rng.choice(self._templates))
        if kind < sum(SHARES.values()):
            return self._from_client(self._request())
        if self._rng.random() < 0.19:
            asked = self._instruction()
            form: Form = self._rng.choice((self._plain, self._sections))
        else:
            shares: dict[Form, int] = {self._plain: 14, self._beside_passage: 7, self._polite: 18}
            shares |= {self._with_rules: 11, self._sections: 42}
            asked, form = [(self._request(), REQUEST)], self._rng.choices([*shares], [*shares.values()])[0]
        return [piece if isinstance(piece, tuple) else (piece, FRAME) for piece in form(asked)]

    # ------------------------------------------------------------------------------------------ what fills a frame

    def _request(self) -> str:
        return self._rng.choice(self._requests)

    def _passage(self, most: int = 900) -> str:
        text, length = self._rng.choice(self._passages), self._rng.randint(150, most)
        begin = self._rng.randint(0, max(0, len(text) - length))
        text = text[begin : begin + length]
        sentence = text.find(". ")
        return text[sentence + 2 :] if begin and 0 <= sentence < 80 else text

    def _instruction(self) -> list[Piece]:
        """An instruction, and the material that it is about."""
        if self._rng.random() < 0.6:
            return [(self._one("instructions"), REQUEST), (self._passage(), MATERIAL)]
        return [(self._one("translations"), REQUEST), (self._request()[:300], MATERIAL)]

    def _one(self, *pools: str) -> str:
        return self._rng.choice(self._frames[self._rng.choice(pools)])  # type: ignore[no-any-return]

    def _some(self, least: int, most: int, *pools: str) -> str:
        if self._rng.random() < 0.05:
            pools = ("foreign",)
        return " ".join(self._one(*pools) for _ in range(self._rng.randint(least, most)))

    def _either(self, *texts: str) -> str:
        return self._rng.choice(texts)

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _list(self, count: int) -> str:
        mark = self._either("- ", "* ", "1", "• ")
        items = [self._one("answers") for _ in range(count)]
        return "\n".join(f"{n}. {item}" if mark == "1" else mark + item for n, item in enumerate(items, 1))

    def _label(self, pool: str) -> str:
        label = self._one(pool).replace("_", " ")
        return self._either(label.capitalize(), label.capitalize(), label.title(), label.upper(), label)

    def _block(self, style: str, label: str, inner: Sequence[Piece | str]) -> list[Piece | str]:
        """A text under a label."""
        tag = label.lower().replace(" ", "_")
        before, after = {
            "colon": (f"{label}:{self._either(' ', chr(10), ' ')}", self._either("\n", "\n\n")),
            "hash": (f"{self._either('#', '##', '###')} {label}{self._either(':', '')}\n", "\n\n"),
            "bracket": (f"[{label}]\n", "\n\n"),
            "bold": (f"**{label}**{self._either(':', '')}{self._either(' ', chr(10))}", "\n\n"),
            "tag": (f"<{tag}>{self._either(chr(10), '')}", f"{self._either(chr(10), '')}</{tag}>\n"),
            "ruled": (f"{label}:\n{'-' * 20}\n", f"\n{'-' * 20}\n"),
        }[style]
        return [before, *inner, after]

    # ------------------------------------------------------------------------------------------ forms of messages

    def _plain(self, asked: list[Piece]) -> list[Piece | str]:
        before = [self._one("greetings") + " "] if self._chance(0.25) else []
        after = [" " + self._one("thanks")] if self._chance(0.2) else []
        if len(asked) > 1 and self._chance(0.3):
            asked = asked[::-1]
        return [
            *before,
            asked[0],
            *[part for one in asked[1:] for part in (self._either("\n\n", "\n", " "), one)],
            *after,
        ]

    def _beside_passage(self, asked: list[Piece]) -> list[Piece | str]:
        """Passages before or after the request, without labels, quoted, fenced, listed or with titles."""
        material = (self._passage(), MATERIAL)
        lead, gap = self._some(1, 1, "leads", "context_tasks"), self._either("\n\n", "\n\n", "\n---\n", "\n", " ")
        titled: list[Piece | str] = []
        for number in range(self._rng.randint(1, 3)):
            names = f"Title: Note {number}\nURL: https://example.org/{number}\n", f"Passage {number} (score 0.8)\n"
            marks = f"[{number}] ", f"({number}) ", f"Document {number}: ", f"From page {number}:\n", "- ", ""
            titled += [self._either(*names, *marks), (self._passage(), MATERIAL), self._either("\n\n", "\n")]
        listed = [part for one in material[0].split(". ")[:6] for part in ("- ", (one, MATERIAL), "\n")]
        forms: tuple[list[Piece | str], ...] = (
            [f"{lead} ", material, gap],
            [material, gap],
            [f"{lead}\n```\n", material, "\n```\n"],
            [f'{lead} "', material, '"\n\n'],
            [f"{lead}\n\n", *titled, self._either("", "Question: ", "My question: ", "---\n")],
            [f"{lead}\n", *listed, "\n"],
            ["> ", (material[0].replace("\n", " "), MATERIAL), "\n\n"],
        )
        around = self._rng.choice(forms)
        ending = ["\n\n" + self._some(1, 2, "answers")] if self._chance(0.2) else []
        if self._chance(0.3):
            return [*asked, self._either("\n\n", " Context: ", " (Background: ", "\nSource: "), *around, *ending]
        return [*around, *asked, *ending]

    def _polite(self, asked: list[Piece]) -> list[Piece | str]:
        before = self._some(1, 3, "greetings") + self._either(" ", " ", "\n", "\n\n")
        after = self._either(" ", "\n\n") + self._some(1, 2, "thanks") if self._chance(0.7) else ""
        return [before, *asked, after]

    def _with_rules(self, asked: list[Piece]) -> list[Piece | str]:
        before = (
            self._some(1, 4, "roles", "tasks", "answers") + self._either(" ", "\n\n", "\n") if self._chance(0.6) else ""
        )
        lead = self._either("Please follow these guidelines:", "Rules:", "Requirements:", "Your answer must:", "Note:")
        rules = f"{lead}\n{self._list(self._rng.randint(3, 8))}" if self._chance(0.3) else self._some(1, 4, "answers")
        return [before, *asked, self._either("\n", "\n\n", " "), rules]

    def _sections(self, asked: list[Piece]) -> list[Piece | str]:
        """The parts of a template: introduction, context, rules, fields, and the request."""
        style = self._rng.choice(STYLES)
        head = self._some(1, 3, "roles", "tasks") + "\n\n" if self._chance(0.8) else ""
        request = self._block(style, self._label("request_labels"), asked[:1])
        if self._chance(0.15):
            request = [asked[0], "\n\n"]
        if len(asked) > 1:
            request += self._block(style, self._label("material_labels"), asked[1:])
        parts: list[list[Piece | str]] = []
        if self._chance(0.6):
            head += self._some(1, 2, "context_tasks") + "\n\n" if self._chance(0.7) else ""
            parts.append(self._context(style))
        if self._chance(0.4):
            lines = (self._list(self._rng.randint(2, 6)), self._one("formats"), self._some(1, 3, "answers"))
            parts.append(self._block(style, self._label("rule_labels"), [self._either(*lines)]))
        if self._chance(0.2):
            parts.append(["\n".join(self._one("metadata") for _ in range(self._rng.randint(1, 4))) + "\n"])
        self._rng.shuffle(parts)
        place = self._rng.choices((len(parts), 0, len(parts) // 2), (65, 20, 15))[0]
        parts.insert(place, request)
        ending = self._some(1, 3, "answers") + "\n" if self._chance(0.3) else ""
        cue = self._block(style, self._label("answer_labels"), [])[0] if self._chance(0.5) else ""
        return [head, *[piece for part in parts for piece in part], ending, cue]

    def _context(self, style: str) -> list[Piece | str]:
        label, count = self._label("material_labels"), self._rng.randint(1, 3)
        passages: list[Piece] = [(self._passage(), MATERIAL) for _ in range(count)]
        numbered = [part for n, one in enumerate(passages, 1) for part in (f"[{n}] ", one, "\n")]
        several = [part for one in passages for part in (one, self._either("\n\n", "\n"))]
        lead = f"{self._one('leads')}{self._either(chr(10), chr(10) * 2)}"
        forms: tuple[list[Piece | str], ...] = (
            self._block(style, label, [self._either("None", "N/A", "(empty)", "no documents found")]),
            several,
            [lead, *numbered],
            self._block(style, label, numbered),
            self._block(style, label, several),
            [
                part
                for n, one in enumerate(passages)
                for part in self._block(style, f"{label} {n}".replace(" 0", ""), [one])
            ],
        )
        return self._rng.choices(forms, (1, 2, 1, 2, 2, 3))[0]

    # ------------------------------------------------------------------------------------------ what others wrote

    def _from_template(self, template: str) -> list[Piece]:
        options = "".join(f"\n{letter}. {self._request()[:60]}" for letter in "ABCD") if self._chance(0.5) else ""
        instruction = re.match(r"Translate[^.]*\.", template)  # its question is material
        slots = {
            "{{question}}": (self._request(), MATERIAL if instruction else REQUEST),
            "{{options}}": (options, REQUEST),
            "{{context}}": (self._passage(1200), MATERIAL),
            "{{more_context}}": (self._passage(1200), MATERIAL),
            "{{other_question}}": (self._request()[:200], MATERIAL),
        }
        pieces = [slots.get(part, (part, FRAME)) for part in re.split(r"({{\w+}})", template)]
        return [(instruction[0], REQUEST), *pieces] if instruction else pieces

    def _from_client(self, request: str) -> list[Piece]:
        """A user message of a client around the request; or one without, which is no request at all."""
        wrap = WRAPPERS[self._either(*WRAPPERS)]
        texts = [one["content"] for one in wrap(request) if one["role"] == "user"]
        text = self._either(*texts)
        if request not in text:
            return [(text, FRAME)]
        before, _, after = text.partition(request)
        return [(before, FRAME), (request, REQUEST), (after, FRAME)]


def labelled_units(pieces: Sequence[Piece]) -> tuple[list[Unit], list[int]]:
    """The units of a message and their classes: of the piece that holds the unit, or its beginning or end."""
    units = reading.units_of(take_blocks("".join(text for text, _ in pieces), MessageParts("")))
    classes = []
    for unit in units:
        ends = (unit.text,) if len(unit.text) <= 15 else (unit.text, unit.text[:15], unit.text[-15:])
        holders = [
            kind
            for end in ends
            for kind in (REQUEST, MATERIAL)
            if any(end in text for text, own in pieces if own == kind)
        ]
        classes.append(holders[0] if holders else FRAME)
    return units, classes


def fit(messages: Iterator[Sequence[Piece]], count: int) -> dict[str, Any]:
    """The model, as ReadingModel."""
    from sklearn.linear_model import LogisticRegression

    rows: list[list[str]] = []
    classes: list[int] = []
    weights: list[float] = []
    steps = np.ones((4, 3, 3))
    texts: dict[str, set[str]] = {}
    for _ in range(count):
        units, found = labelled_units(next(messages))
        for unit, place in zip(units, reading.place_features(units) if units else (), strict=True):
            own, prefix = [*dict.fromkeys(reading.first_words(unit.text))], NAME_PREFIX if unit.is_name else WORD_PREFIX
            rows.append([*reading.form_features(unit.text, unit.kind, own), *place, *(prefix + one for one in own)])
        classes += found
        weights += [max(1, len(units)) ** -0.5] * len(units)
        for unit, kind in zip(units, found, strict=True):
            for word in reading.first_words(unit.text) if kind == FRAME else ():
                texts.setdefault(word, set()).add(unit.text)
        chain = [(unit, kind) for unit, kind in zip(units, found, strict=True) if not unit.is_name]
        for (unit, kind), (following, next_kind) in pairwise(chain):
            steps[reading.relation(unit, following), kind, next_kind] += 1
    known = chosen_features(rows, classes, texts, messages=count)
    for row in rows:
        row.append(reading.topical_feature(sum(name.startswith(WORD_PREFIX) and name not in known for name in row)))
    names = sorted({*known, *(row[-1] for row in rows)})
    index = {name: column for column, name in enumerate(names)}
    cells = [(row, index[name]) for row, own in enumerate(rows) for name in own if name in index]
    ones: NDArray[np.float64] = np.ones(len(cells))
    matrix = csr_matrix((ones, tuple(zip(*cells, strict=True))), shape=(len(rows), len(names)))
    model = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=400).fit(matrix, classes, sample_weight=weights)
    right = model.predict(matrix) == classes
    sys.stderr.write(f"{len(rows)} units, {len(names)} features, {right.mean():.3f} right before the chain\n")
    joint = steps / steps.sum((1, 2), keepdims=True)
    factors = (joint / joint.sum(2, keepdims=True) / joint.sum(1, keepdims=True)) ** TRANSITION_POWER
    return {
        "bias": model.intercept_.round(2).tolist(),
        "transitions": factors.round(3).tolist(),
        "weights": {name: model.coef_[:, column].round(2).tolist() for name, column in index.items()},
    }


def chosen_features(
    rows: Sequence[Sequence[str]], classes: Sequence[int], texts: Mapping[str, set[str]], *, messages: int
) -> set[str]:
    """Structure, labels, the commonest words, and words of frames: no words of topics. `texts` are those of frames that
    hold a word."""
    counts = Counter(name for names in rows for name in names)
    framed = Counter(name for names, kind in zip(rows, classes, strict=True) if kind == FRAME for name in names)
    of_words = (WORD_PREFIX, "opens ")
    common = {
        name
        for name, _ in Counter({n: c for n, c in counts.items() if n.startswith(of_words)}).most_common(COMMON_WORDS)
    }
    return {
        name
        for name, number in counts.items()
        if (
            name in common
            or (
                framed[name] >= messages / 600
                and framed[name] > MIN_FRAME_SHARE * number
                and len(texts.get(name.rpartition(" ")[2], ())) >= MIN_FRAME_TEXTS
            )
            if name.startswith(of_words)
            else number >= messages / 500
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path(reading.__file__).with_name(reading.MODEL))
    options = parser.parse_args()
    starter = (HERE.parent / "routers" / "starter" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line)["prompt"] for line in starter]
    public = pq.read_table(options.data / "category" / "train.parquet", columns=["prompt", "lang"]).to_pylist()
    english = [row["prompt"] for row in public if row["lang"] in ("en", "", None) and 15 < len(row["prompt"]) <= 900]
    rng = Random(SEED)
    requests += rng.sample(english, min(len(english), len(requests) // 2))
    lines = (HERE / "reading_passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    frames = YAML(typ="safe").load(HERE / "reading_frames.yaml")
    writer = Writer(frames, requests, passages, rng)
    model = fit(iter(writer.message, None), options.messages)
    lines = [f'"{name}":{json.dumps(weights)}' for name, weights in sorted(model["weights"].items())]
    head = json.dumps({name: model[name] for name in ("bias", "transitions")})[:-1]
    options.out.write_text(f'{head}, "weights": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
