"""Category routing: accuracy of each head and of the cascade, out-of-scope detection, and the starter prompts.

    python -m benchmarks.category --data DIR [--starter FILE [--without STYLE]...]

DIR holds train.parquet (source, prompt, category, label, split). Part 1 trains on four fifths of a balanced sample and
tests on the rest; part 2 trains on all in-scope CLINC and banking rows and separates CLINC's out-of-scope rows from its
validation rows; part 3 trains on the starter file alone, without the prompts of each STYLE, and tests on them too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import routers
from coe.core import FAST_UNCERTAIN
from routers.calibration import auroc, expected_calibration_error, logarithmic_pool
from routers.cascade import CascadeRouter, load_cascade
from routers.heads import softmax
from routers.training.fitting import folds

Row = dict[str, str]
EACH = 400
SEED = 0
PLAIN_NAMES = {"commonsense": "everyday", "assistant_command": "everyday", "engineering_cs": "code"}
LANGUAGES = "multilingual"
"""Public questions in other languages: a language is no topic, so that this label is none (benchmarks.languages)."""
MAX_SHORT_CHARACTERS = 70
"""About the length of CLINC's rows."""
LEFT_OUT = ("banking_support", "out_of_scope", LANGUAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--starter", type=Path)
    parser.add_argument("--without", action="append", default=[], metavar="STYLE")
    options = parser.parse_args()
    rows = read(options.data / "train.parquet")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "balanced": lambda: balanced(rows),
        "out_of_scope": lambda: out_of_scope(rows),
    }
    if options.starter:
        parts["starter"] = lambda: starter(rows, options.starter, without=options.without)
    for name, part in parts.items():
        print(json.dumps({name: part()}, indent=1), flush=True)


def read(path: Path) -> list[Row]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]


def sample(rows: Sequence[Row], *, each: int) -> list[Row]:
    """At most `each` rows of every category, drawn with SEED, a prompt once."""
    rng = np.random.default_rng(SEED)
    by_category: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_category.setdefault(row["category"], {})[row["prompt"]] = row
    drawn = []
    for name in sorted(by_category):
        found = list(by_category[name].values())
        drawn += [found[i] for i in rng.permutation(len(found))[:each]]
    return drawn


def trained(rows: Sequence[Row], folder: Path) -> tuple[CascadeRouter, dict[str, Any]]:
    examples = [routers.Example(row["prompt"], row["category"]) for row in rows]
    metrics = routers.build(examples, out=folder)
    return load_cascade(folder, threads=1), metrics


# ---------------------------------------------------------------------------------------------- part 1


def balanced(rows: Sequence[Row]) -> dict[str, Any]:
    drawn = sample([row for row in rows if row["category"] not in ("out_of_scope", LANGUAGES)], each=EACH)
    names = sorted({row["category"] for row in drawn})
    labels = np.array([names.index(row["category"]) for row in drawn])
    rest, held = folds(labels)[0]
    with tempfile.TemporaryDirectory() as folder:
        router, metrics = trained([drawn[i] for i in rest], Path(folder))
    texts = [drawn[i]["prompt"] for i in held]
    return {
        "seed": SEED,
        "trained_on": len(rest),
        "tested_on": len(held),
        **accuracies(router, texts, labels[held]),
        "milliseconds": timings(router, texts),
        "seconds": metrics["seconds"],
        "held_out": {name: metrics[name] for name in ("accuracy", "escalated", "ece")},
    }


def accuracies(router: CascadeRouter, texts: Sequence[str], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy of every head and stage, the escalated share and the calibration error."""
    heads = router.head_outputs(texts).logits
    predictions = router.predict(texts)
    confidence = np.array([p.confidence for p in predictions])
    right = np.array([p.best for p in predictions]) == labels
    accuracy = {name: hits(logits, labels) for name, logits in heads.items()}
    accuracy["fast"] = hits(logarithmic_pool([heads["lexical"], heads["static"]], router.ensemble.fast), labels)
    accuracy["cascade"] = float(right.mean())
    accuracy["encoder"] = hits(logarithmic_pool(list(heads.values()), router.ensemble.encoder), labels)
    accuracy["plain_average"] = hits(sum((softmax(logits) for logits in heads.values()), np.zeros(1)), labels)
    return {
        "accuracy": accuracy,
        "escalated": float(np.mean([p.stage == "encoder" for p in predictions])),
        "ece": expected_calibration_error(confidence, right),
    }


def hits(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def timings(router: CascadeRouter, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds a prompt, one thread."""
    short = [text for text in texts if len(text) <= 120]
    some = texts[:300]
    return {
        "peek_short_median": median(router.predict_fast, short),
        "peek_median": median(router.predict_fast, some),
        "peek_100k_characters": median(router.predict_fast, ["word " * 20_000] * 50),
        "predict_median": median(lambda text: router.predict([text]), some),
        "predict_escalated_median": median(
            lambda text: router.predict([text]),
            [text for text in some if router.predict_fast(text).stage == FAST_UNCERTAIN],
        ),
    }


def median(call: Callable[[str], object], texts: Sequence[str]) -> float:
    """Of the milliseconds that each call takes."""
    times = []
    for text in texts:
        began = time.perf_counter()
        call(text)
        times.append((time.perf_counter() - began) * 1000)
    return round(float(np.median(times)), 4)


# ---------------------------------------------------------------------------------------------- part 2


def out_of_scope(rows: Sequence[Row]) -> dict[str, Any]:
    """AUROC of separating CLINC's in-scope validation rows from its out-of-scope rows."""
    inside = [row for row in rows if row["category"] in ("assistant_command", "banking_support")]
    tested = [row for row in inside if row["source"] == "clinc150" and row["split"] == "val"]
    seen = [row for row in inside if row["split"] != "val"]
    outside = [row["prompt"] for row in rows if row["category"] == "out_of_scope"]
    with tempfile.TemporaryDirectory() as folder:
        router, metrics = trained(seen, Path(folder))
    texts = [row["prompt"] for row in tested] + outside
    inlier = np.arange(len(texts)) < len(tested)
    outputs = router.head_outputs(texts)
    probability = softmax(logarithmic_pool(list(outputs.logits.values()), router.ensemble.encoder)).max(axis=1)
    predictions = router.predict(texts)
    served = np.array([p.confidence for p in predictions])
    escalated = np.array([p.stage == "encoder" for p in predictions])
    rejected = served < metrics["confidence_threshold"]
    return {
        "trained_on": metrics["examples"],
        "seconds": metrics["seconds"],
        "in_scope": len(tested),
        "out_of_scope": len(outside),
        "auroc": {
            "maximum_probability": auroc(probability, inlier),
            "similarity": auroc(outputs.similarity, inlier),
            "both": auroc(probability * outputs.similarity, inlier),
            "served_confidence": auroc(served, inlier),
        },
        "escalated": float(escalated[inlier].mean()),
        "confidence_threshold": metrics["confidence_threshold"],
        "rejected": {"in_scope": float(rejected[inlier].mean()), "out_of_scope": float(rejected[~inlier].mean())},
    }


# ---------------------------------------------------------------------------------------------- part 3


def plain_category(row: Row) -> str | None:
    """Return the starter's category for a row of the public data; None without one."""
    if row["category"] in LEFT_OUT:
        return None
    if row["label"] in ("engineering", "electrical_engineering"):
        return "natural_science"
    return PLAIN_NAMES.get(row["category"], row["category"])


def starter(rows: Sequence[Row], file: Path, *, without: Sequence[str]) -> dict[str, Any]:
    examples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    left_out = [row for row in examples if row.get("style") in without]
    examples = [row for row in examples if row.get("style") not in without]
    mapped = [{**row, "category": name} for row in rows if (name := plain_category(row))]
    with tempfile.TemporaryDirectory() as folder:
        router, metrics = trained(examples, Path(folder))
    arena = [row for row in mapped if row["source"] == "arena_hard_v2"]
    english = [row for row in arena if sum(map(str.isascii, row["prompt"])) > 0.98 * len(row["prompt"])]
    return {
        "trained_on": metrics["examples"],
        "seconds": metrics["seconds"],
        "held_out": {
            name: metrics[name]
            for name in ("accuracy", "escalated", "ece", "confidence_threshold", "rejected", "accuracy_by_category")
        },
        "public": recalls(router, sample(mapped, each=EACH), confidence_threshold=metrics["confidence_threshold"]),
        "out_of_scope": familiarity(router, sample(mapped, each=EACH), rows),
        "arena_hard_v2": recalls(router, arena, confidence_threshold=metrics["confidence_threshold"]),
        "arena_hard_v2_ascii": recalls(router, english, confidence_threshold=metrics["confidence_threshold"]),
        "left_out": recalls(router, left_out, confidence_threshold=metrics["confidence_threshold"]) if left_out else {},
    }


def familiarity(router: CascadeRouter, inside: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """AUROC of separating public prompts from CLINC's out-of-scope rows, also by length alone, which ignores topics."""
    outside = [row for row in rows if row["category"] == "out_of_scope"]
    short = [row for row in inside if len(row["prompt"]) <= MAX_SHORT_CHARACTERS]
    report = {}
    for name, part in (("all", inside), ("short", short)):
        texts = [row["prompt"] for row in (*part, *outside)]
        inlier = np.arange(len(texts)) < len(part)
        outputs = router.head_outputs(texts)
        probability = softmax(logarithmic_pool(list(outputs.logits.values()), router.ensemble.encoder)).max(axis=1)
        served = np.array([prediction.confidence for prediction in router.predict(texts)])
        lengths = np.array([len(text) for text in texts], dtype=np.float32)
        scores = {"served": served, "similarity": outputs.similarity, "maximum_probability": probability}
        report[name] = {key: auroc(score, inlier) for key, score in (scores | {"length": lengths}).items()}
        report[name]["rows"] = len(part)
    return report


def recalls(router: CascadeRouter, rows: Sequence[Row], *, confidence_threshold: float) -> dict[str, Any]:
    """Recall by category, its mean, the commonest confusions, and the shares escalated and rejected."""
    texts = [row["prompt"] for row in rows]
    heads = router.head_outputs(texts).logits
    encoder = logarithmic_pool(list(heads.values()), router.ensemble.encoder).argmax(axis=1)
    predictions = router.predict(texts)
    truth = np.array([row["category"] for row in rows])
    found = np.array([router.categories[p.best] for p in predictions])
    names = sorted(set(truth))
    confused = Counter((str(t), str(f)) for t, f in zip(truth, found, strict=True) if t != f)
    confidence = np.array([p.confidence for p in predictions])
    return {
        "rows": len(rows),
        "recall": {str(name): round(float((found[truth == name] == name).mean()), 3) for name in names},
        "macro": float(np.mean([(found[truth == name] == name).mean() for name in names])),
        "macro_encoder": float(
            np.mean([(np.array(router.categories)[encoder][truth == name] == name).mean() for name in names])
        ),
        "escalated": float(np.mean([p.stage == "encoder" for p in predictions])),
        "rejected": float((confidence < confidence_threshold).mean()),
        "ece": expected_calibration_error(confidence, found == truth),
        "confusions": [f"{t} -> {f}: {count}" for (t, f), count in confused.most_common(10)],
    }


if __name__ == "__main__":
    main()
