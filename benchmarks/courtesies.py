"""Share of classifications that stay with a greeting, small talk or thanks around a prompt.

    python -m benchmarks.courtesies --router FOLDER --data DIR/category [--json FILE]

Each public prompt gets a courtesy of `benchmarks/courtesies.txt`, and is classified as it stands ("before") and by the
text that is routed ("now"). The rules were written with part "development" in view, "test" and "fresh" afterwards.
`plain` is the accuracy without courtesies, both ways, on the prompts whose routed text differs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from coe.routing.courtesies import without_courtesies
from numpy.typing import NDArray

import routers
from benchmarks.category import plain_category, read, sample
from coe.core import Router
from coe.routing.request_text import prompt_text

PHRASES = Path(__file__).with_name("courtesies.txt")
EACH, PLAIN_EACH = 40, 400
Phrase = tuple[str, str]
"""The position of a courtesy ("before" or "after") and its text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = read(options.data / "train.parquet")
    report = courtesies(routers.load(options.router), [{**r, "category": c} for r in rows if (c := plain_category(r))])
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")


def courtesies(router: Router, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    prompts = [row["prompt"] for row in sample(rows, each=EACH)]
    report: dict[str, Any] = {"prompts": len(prompts)}
    ways: dict[str, Callable[[str], str]] = {"before": str, "now": prompt_text}
    for part, phrases in read_phrases().items():
        rng = random.Random(0)
        wrapped = [_wrap(prompt, rng.choice(phrases)) for prompt in prompts]
        for way, read_text in ways.items():
            stays = _found(router, prompts, read_text) == _found(router, wrapped, read_text)
            report[f"{part}, {way}"] = {
                "stays": round(float(stays.mean()), 4),
                "standard_error": round(float(stays.std() / len(stays) ** 0.5), 4),
            }
    changed = [row for row in sample(rows, each=PLAIN_EACH) if without_courtesies(row["prompt"]) != row["prompt"]]
    truth = np.array([router.categories.index(row["category"]) for row in changed])
    plain = {way: _found(router, [r["prompt"] for r in changed], f) == truth for way, f in ways.items()}
    return report | {"plain": {"rows": len(changed)} | {way: int(right.sum()) for way, right in plain.items()}}


def read_phrases() -> dict[str, list[Phrase]]:
    """The courtesies by part."""
    found: dict[str, list[Phrase]] = {}
    for line in PHRASES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            part, place, text = line.replace("\\n", "\n").split("\t")
            found.setdefault(part, []).append((place, text))
    return found


def _wrap(prompt: str, phrase: Phrase) -> str:
    place, text = phrase
    return f"{text} {prompt}" if place == "before" else f"{prompt}\n{text}"


def _found(router: Router, prompts: Sequence[str], read_text: Callable[[str], str]) -> NDArray[np.int64]:
    return np.array([prediction.best for prediction in router.predict([read_text(prompt) for prompt in prompts])])


if __name__ == "__main__":
    main()
