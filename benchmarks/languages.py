"""Topics and languages of prompts that are not English: accuracy, latency and memory.

    python -m benchmarks.languages --router FOLDER --data DIR/category

FOLDER is the artifact of a router trained on the starter prompts with the extra `multilingual`. The own prompts are
`benchmarks/language_prompts.jsonl`: 20 each of 12 topics in nine languages, none of them a starter prompt; the fresh
ones, language_prompts_fresh.jsonl, were written after the head was chosen: one a category and language. The third ones,
language_prompts_third.jsonl, are half of 210 prompts whose other half are starter prompts. DIR/category holds
train.parquet; its arena_hard_v2 rows count as foreign if their identified language is not English. Accuracy has its
standard error. Times are processor times of one thread; memory is that of a new process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.category import plain_category, read
from coe.core import Prediction
from routers.calibration import expected_calibration_error
from routers.cascade import MULTILINGUAL, CascadeRouter, load_cascade
from routers.multilingual import PROBE_TEXT, LanguageIdentifier

PROMPTS = Path(__file__).with_name("language_prompts.jsonl")
FRESH_PROMPTS = Path(__file__).with_name("language_prompts_fresh.jsonl")
THIRD_PROMPTS = Path(__file__).with_name("language_prompts_third.jsonl")
ENGLISH_PROMPT = "Which documents do I need to register a small company?"
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    router = load_cascade(options.router, threads=1)
    own, fresh, third = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (PROMPTS, FRESH_PROMPTS, THIRD_PROMPTS)
    )
    parts: dict[str, Callable[[], Any]] = {
        "own": lambda: topics(router, own, by="language"),
        "fresh": lambda: topics(router, fresh, by="language"),
        "third": lambda: topics(router, third, by="language"),
        "own_without_the_extra": lambda: topics(without_stage(options.router), own),
        "milliseconds": lambda: times(options.router, [row["prompt"] for row in own]),
        "rss_mb": lambda: memory(options.router, own[0]["prompt"]),
    }
    if options.data:
        foreign, english = arena(options.data)
        parts["arena_hard_v2_foreign"] = lambda: topics(router, foreign)
        parts["arena_hard_v2_foreign_without_the_extra"] = lambda: topics(without_stage(options.router), foreign)
        parts["arena_hard_v2_english"] = lambda: topics(router, english)
    for name, part in parts.items():
        print(json.dumps({name: part()}, indent=1, ensure_ascii=False), flush=True)


def without_stage(folder: Path) -> CascadeRouter:
    """The router as it is served where the extra is not installed."""
    router = load_cascade(folder, threads=1)
    router.multilingual = None
    return router


def arena(data: Path) -> tuple[list[Row], list[Row]]:
    """The rows of arena_hard_v2 in other languages, and in English."""
    identify = LanguageIdentifier()
    rows = [row for row in read(data / "train.parquet") if row["source"] == "arena_hard_v2"]
    rows = [{**row, "category": plain_category(row) or "", "identified": identify(row["prompt"])} for row in rows]
    foreign = [row for row in rows if row["identified"] not in ("en", "und")]
    return foreign, [row for row in rows if row["identified"] == "en"]


def topics(router: CascadeRouter, rows: Sequence[Row], *, by: str = "category") -> dict[str, Any]:
    predictions = router.predict([row["prompt"] for row in rows])
    found = [router.categories[one.best] for one in predictions]
    right = np.array([name == row["category"] for name, row in zip(found, rows, strict=True)])
    result: dict[str, Any] = {
        "rows": len(rows),
        "accuracy": share(right),
        "standard_error": round(float(right.std() / len(rows) ** 0.5), 4),
        "ece": round(expected_calibration_error(np.array([one.confidence for one in predictions]), right), 4),
        "multilingual_stage": share(np.array([one.stage == MULTILINGUAL for one in predictions])),
        "by_category": grouped(right, [row["category"] for row in rows]),
    }
    if by == "language":
        result["by_language"] = grouped(right, [row["language"] for row in rows])
        result["language_identified"] = language_accuracy(rows, predictions)
    return result


def language_accuracy(rows: Sequence[Row], predictions: Sequence[Prediction]) -> float:
    return share(np.array([row["language"] == one.language for row, one in zip(rows, predictions, strict=True)]))


def grouped(right: NDArray[np.bool_], names: Sequence[str]) -> dict[str, float]:
    return {name: share(right[np.array(names) == name]) for name in sorted(set(names))}


def share(right: NDArray[np.bool_]) -> float:
    return round(float(right.mean()), 4)


def times(folder: Path, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of processor time. The ratio to an English encoder pass holds on a busy machine too."""
    router = load_cascade(folder, threads=1)  # one that has seen none of the texts
    router.predict([PROBE_TEXT])
    router.encoder.encode([ENGLISH_PROMPT])
    foreign, repeated = (
        [milliseconds(lambda text=text: router.predict([text])) for text in texts]  # type: ignore[misc]
        for _ in range(2)
    )
    english = [milliseconds(lambda: router.encoder.encode([ENGLISH_PROMPT])) for _ in range(200)]
    fast = [milliseconds(lambda i=i: router.predict_fast(f"{ENGLISH_PROMPT} {i}")) for i in range(500)]  # type: ignore[misc]
    medians = {
        "foreign": foreign,
        "foreign_repeated": repeated,
        "english_encoder_pass_of_12_tokens": english,
        "english_fast": fast,
    }
    return {
        **{f"{name}_p50": round(float(np.median(found)), 3) for name, found in medians.items()},
        "foreign_p90": round(float(np.percentile(foreign, 90)), 3),
        "foreign_p5": round(float(np.percentile(foreign, 5)), 3),
    }


def milliseconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return (time.thread_time() - began) * 1000


def memory(folder: Path, foreign: str) -> dict[str, float]:
    """MB of a new process after an English prompt and after the first foreign one, and the seconds that it took."""
    program = """
import sys, time, psutil, routers
from pathlib import Path
router, own = routers.load(Path(sys.argv[1])), psutil.Process()
router.predict([sys.argv[2]]); print(own.memory_info().rss / 1e6)
began = time.perf_counter(); router.predict([sys.argv[3]]); print(own.memory_info().rss / 1e6)
print(time.perf_counter() - began)
"""
    command = [sys.executable, "-c", program, str(folder), ENGLISH_PROMPT, foreign]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    english, after, seconds = map(float, ran.stdout.split())
    return {"english_only": round(english, 1), "after_foreign": round(after, 1), "first_foreign_seconds": seconds}


if __name__ == "__main__":
    main()
