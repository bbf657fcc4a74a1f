"""A round of learning for the router: do corrected categories make it better on prompts that it has not seen?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from coe.core import Router
from coe.learning.corrections import Lessons, Pair
from coe.learning.evaluation.probe_split import is_held
from coe.learning.retraining.promotion import Judgement, held_out, judge

HELD = 0.2
"""Share of the prompts, of base and corrections alike, that judges."""
FEWEST = 20
"""New corrections that make a round; and prompts of a category below which none of it is held out."""

Train = Callable[[Sequence[Pair], Path], Router]
"""Trains on (prompt, category) pairs into a folder and loads what it wrote."""


@dataclass(frozen=True, slots=True)
class Schooling:
    """What there is to train on: the labelled base, the corrections that may join it, and the digests of those that
    the router in use has learnt already."""

    base: tuple[Pair, ...]
    lessons: Lessons
    known: frozenset[str]

    @property
    def added(self) -> tuple[Pair, ...]:
        return self.lessons.pairs[len(self.base) :]

    @property
    def new(self) -> int:
        """How many corrections the router in use has not learnt."""
        return sum(lesson_digest(prompt) not in self.known for prompt, _ in self.added)


def lesson_digest(prompt: str) -> str:
    """By which an artifact remembers a prompt that it learnt, without holding its text."""
    return hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=12).hexdigest()


def judge_router(schooling: Schooling, train: Train, *, round_: int) -> Judgement:
    """Train with and without the new corrections, both without the held-out part, and judge both on it.

    The router in use itself cannot be judged on prompts that it was trained on. Every category is guarded.
    """
    pairs = schooling.lessons.pairs
    sizes = Counter(category for _, category in schooling.base)
    held = [sizes[category] >= FEWEST and is_held(prompt, share=HELD) for prompt, category in pairs]
    tested = [pair for pair, judges in zip(pairs, held, strict=True) if judges]
    taught = [pair for pair, judges in zip(pairs, held, strict=True) if not judges]
    base = set(schooling.base)
    before = [pair for pair in taught if pair in base or lesson_digest(pair[0]) in schooling.known]
    if not tested:
        return judge([], round_=round_)
    old, new = (_right(train, part, tested) for part in (before, taught))
    categories = [category for _, category in tested]
    return judge([held_out(old, new, categories, guarded=sorted(sizes))], round_=round_)


def _right(train: Train, pairs: Sequence[Pair], tested: Sequence[Pair]) -> np.ndarray[Any, np.dtype[np.float64]]:
    with TemporaryDirectory(prefix="coe-router-") as folder:
        router = train(pairs, Path(folder))
        found = router.predict([prompt for prompt, _ in tested])
        names = [router.categories[prediction.best] for prediction in found]
    return np.array([name == category for name, (_, category) in zip(names, tested, strict=True)], dtype=np.float64)


def router_report(schooling: Schooling, judgement: Judgement) -> dict[str, Any]:
    """What was learnt and how it was judged; JSON-able."""
    return {
        "promoted": judgement.promote,
        "reason": judgement.reason,
        "sentence": judgement.sentence,
        "round": judgement.round_,
        "base": len(schooling.base),
        "corrections": schooling.lessons.learnt,
        "new": schooling.new,
        "by_category": dict(Counter(category for _, category in schooling.added)),
        "left_out": dict(schooling.lessons.left_out),
        "evidence": [asdict(one) for one in judgement.evidence],
    }


def router_page(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    said: str = report["sentence"]
    counted = ", ".join(f"{count} to {category}" for category, count in report["by_category"].items())
    parts = [
        f"# Router, round {report['round']}: {'promoted' if report['promoted'] else 'kept'}",
        f"{said[0].upper()}{said[1:]}.",
        f"{report['base']} prompts and {report['corrections']} corrections ({counted}), {report['new']} of them new.",
    ]
    if report["left_out"]:
        parts.append("Left out: " + ", ".join(f"{n} ({reason})" for reason, n in report["left_out"].items()) + ".")
    return "\n\n".join(parts) + "\n"
