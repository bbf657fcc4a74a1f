"""Tuning the encoder on the prompts: the same router with and without it, in pairs on prompts that neither has seen.

    python benchmarks/encoder_tuning.py --data DIR [--each N] [--seed N] [--json FILE]

DIR holds train.parquet (source, prompt, category, label, split). Of each in-scope category, `--each` prompts train both
routers (`coe train` with and without --tune-encoder) and 80 others test them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import routers
from benchmarks.category import LANGUAGES, Row, read
from routers.calibration import expected_calibration_error
from routers.cascade import CascadeRouter, load_cascade
from routers.examples import normalize_prompt

TESTED_EACH = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--each", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for row in read(options.data / "train.parquet") if row["category"] not in ("out_of_scope", LANGUAGES)]
    trained, tested = drawn(rows, each=options.each, seed=options.seed)
    report = compare(trained, tested, seed=options.seed)
    print(json.dumps(report, indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def drawn(rows: Sequence[Row], *, each: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return training and test rows of every category; a prompt occurs once."""
    rng = np.random.default_rng(seed)
    by_category: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_category.setdefault(row["category"], {})[normalize_prompt(row["prompt"])] = row
    trained, tested = list[Row](), list[Row]()
    for name in sorted(by_category):
        found = list(by_category[name].values())
        order = rng.permutation(len(found))
        tested += [found[i] for i in order[:TESTED_EACH]]
        trained += [found[i] for i in order[TESTED_EACH:][:each]]
    return trained, tested


def compare(trained: Sequence[Row], tested: Sequence[Row], *, seed: int) -> dict[str, Any]:
    names = sorted({row["category"] for row in trained})
    labels = np.array([names.index(row["category"]) for row in tested])
    texts = [row["prompt"] for row in tested]
    examples = [routers.Example(row["prompt"], row["category"]) for row in trained]
    report: dict[str, Any] = {"seed": seed, "trained_on": len(trained), "tested_on": len(tested)}
    right: dict[str, dict[str, NDArray[np.float64]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in ("untuned", "tuned"):
            out = Path(work) / name
            metrics = routers.build(
                examples, out=out, seed=seed, tune_encoder=name == "tuned", cache=Path(work) / "cache"
            )
            right[name], figures = measured(load_cascade(out, threads=2), texts, labels)
            chosen = ("accuracy", "ece", "accuracy_on_new_topics", "escalated", "tuning", "seconds")
            megabytes = sum(metrics["bytes"].values()) / 1e6
            report[name] = figures | {"megabytes": megabytes, "manifest": {key: metrics[key] for key in chosen}}
    report["paired"] = {
        part: {"difference": float(gain.mean()), "standard_error": float(gain.std(ddof=1) / len(gain) ** 0.5)}
        for part in right["tuned"]
        for gain in [right["tuned"][part] - right["untuned"][part]]
    }
    return report


def measured(
    router: CascadeRouter, texts: Sequence[str], labels: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Return which texts each head and the cascade classify correctly (0 or 1), and figures of them."""
    heads = router.head_outputs(texts).logits
    predictions = router.predict(texts)
    right = {name: (logits.argmax(axis=1) == labels).astype(float) for name, logits in heads.items()}
    right["all_heads"] = (router.ensemble.encoder_posterior(tuple(heads.values())).argmax(axis=1) == labels).astype(
        float
    )
    cascade = np.array([p.best for p in predictions]) == labels
    confidence = np.array([p.confidence for p in predictions])
    return right | {"cascade": cascade.astype(float)}, {
        "accuracy": {name: float(values.mean()) for name, values in right.items()} | {"cascade": float(cascade.mean())},
        "escalated": float(np.mean([p.stage == "encoder" for p in predictions])),
        "ece": expected_calibration_error(confidence, cascade),
    }


if __name__ == "__main__":
    main()
