"""Labelled prompts made fit to learn from: blanks, duplicates and contradictions out, everything counted."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from routers.tokens import replace_surrogates

MAX_PROMPT_CHARACTERS = 8192
"""Characters of a prompt that are kept; no head reads more."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What is left: `texts`, their `labels` (n_texts,) as indices of `categories` (sorted), and what was dropped."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    categories: tuple[str, ...]
    dropped: dict[str, int]


def normalize_prompt(prompt: str) -> str:
    """What of a prompt is learnt from."""
    return replace_surrogates(prompt[:MAX_PROMPT_CHARACTERS]).strip()


def build_training_set(examples: Sequence[Example]) -> TrainingSet:
    """Raises DataError when fewer than two categories, or fewer than two prompts of any category, are left: one that
    vanished here would be declared and never get a request."""
    labels: dict[str, set[str]] = {}
    blank = 0
    for example in examples:
        text = normalize_prompt(example.prompt)
        if text:
            labels.setdefault(text, set()).add(example.category)
        else:
            blank += 1
    kept = {text: min(found) for text, found in labels.items() if len(found) == 1}
    contradictory = len(labels) - len(kept)
    duplicates = len(examples) - blank - sum(map(len, labels.values()))
    counts = Counter({example.category: 0 for example in examples})
    counts.update(kept.values())
    dropped = {"blank": blank, "duplicate": duplicates, "contradictory": contradictory}
    _check(counts, dropped, total=len(examples))
    categories = tuple(sorted(counts))
    index = {name: i for i, name in enumerate(categories)}
    return TrainingSet(
        texts=tuple(kept),
        labels=np.array([index[category] for category in kept.values()], dtype=np.int64),
        categories=categories,
        dropped=dropped,
    )


def _check(counts: Mapping[str, int], dropped: Mapping[str, int], *, total: int) -> None:
    said = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) or "none"
    if dropped["contradictory"]:
        said += f"; {dropped['contradictory']} contradictory: the same prompt under two categories"
    if sum(count > 0 for count in counts.values()) < 2:
        raise DataError(f"{total} examples leave prompts of fewer than two categories ({said}); add another category")
    if min(counts.values()) < 2:
        raise DataError(f"every category needs two different prompts or more (left: {said}); add prompts")


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt."""

    prompt: str
    category: str


def prompt_digest(prompt: str) -> str:
    """By which a router remembers an exemplar, without its text."""
    from routers.examples import normalize_prompt

    return hashlib.blake2b(normalize_prompt(prompt).encode("utf-8", "replace"), digest_size=12).hexdigest()


def starter_examples() -> list[Example]:
    """The labelled prompts that come with this package."""
    lines = (
        (importlib.resources.files("routers") / "starter" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [Example(**json.loads(line)) for line in lines]
