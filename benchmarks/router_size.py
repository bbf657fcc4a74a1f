"""Size and accuracy of a trained router with coarser tables, paired on the same public prompts.

    python -m benchmarks.router_size --router FOLDER --data DIR/category [--other FOLDER ...] [--each 300]

FOLDER is the artifact of a router that was trained with WORD_STEP = 1 (routers/training/export.py) and MAX_LEVEL = 127
(routers/heads/fast.py). Its tables are rounded to coarser levels without training; --other names routers that were
trained otherwise. DIR/category holds train.parquet. Prints for each: megabytes as zlib compresses them, accuracy, log
loss, the share of encoder passes, and the differences to FOLDER with their standard errors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.category import plain_category, read, sample
from routers.cascade import ENCODER, NETWORK, STATIC, load_cascade
from routers.files import read_arrays, write_arrays
from routers.training.export import round_word_vectors

VARIANTS = ((1, 31), (1, 15), (1, 7), (2, 127), (4, 127), (8, 127), (4, 31))
"""Step of the word vectors' levels, and largest level of the static vectors."""


@dataclass(frozen=True)
class Predictions:
    """Of all prompts: whether they are right, the log loss, and whether the encoder ran."""

    right: NDArray[np.float64]
    loss: NDArray[np.float64]
    escalated: NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--each", type=int, default=300)
    options = parser.parse_args()
    rows = read(options.data / "train.parquet")
    drawn = sample(
        [{**row, "category": name} for row in rows if (name := plain_category(row))],
        each=options.each,
    )
    base = predictions(options.router, drawn)
    report("as trained", options.router, base, base)
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in variants(options.router, Path(folder)):
            report(name, variant, predictions(variant, drawn), base)
    for other in options.other:
        report(str(other), other, predictions(other, drawn), base)


def variants(router: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield names and folders of the router with coarser tables."""
    import onnx_ir as ir

    for step, level in VARIANTS:
        copy = folder / f"{step}-{level}"
        shutil.copytree(router, copy)
        model = ir.load(copy / NETWORK)
        round_word_vectors(model, step=step)
        ir.save(model, copy / NETWORK)
        tables = read_arrays(copy / STATIC, "tokens", "scales", "weights", "bias", "centroids", "means")
        coarse = np.rint(tables["tokens"] / 127 * level).astype(np.int8)
        tables |= {"tokens": np.asfortranarray(coarse), "scales": tables["scales"] * (127 / level)}
        write_arrays(copy / STATIC, tables)
        yield f"word step {step}, static levels to {level}", copy


def predictions(router: Path, rows: list[dict[str, str]]) -> Predictions:
    """Predict with the English heads alone."""
    cascade = load_cascade(router, threads=1)
    cascade.multilingual = None
    found = cascade.predict([row["prompt"] for row in rows])
    posterior = np.stack([one.probabilities for one in found]).astype(np.float64)
    truth = np.array([cascade.categories.index(row["category"]) for row in rows])
    loss = -np.log(np.maximum(posterior[np.arange(len(truth)), truth], 1e-9))
    escalated = np.array([one.stage == ENCODER for one in found])
    return Predictions((posterior.argmax(axis=1) == truth).astype(np.float64), loss, escalated)


def report(name: str, folder: Path, found: Predictions, base: Predictions) -> None:
    sizes: dict[str, Any] = {one: compressed_mb(folder / one) for one in (NETWORK, STATIC)}
    sizes["all files"] = round(sum(compressed_mb(path) for path in folder.iterdir()), 2)
    line = {
        "router": name,
        "mb": sizes,
        "prompts": len(found.right),
        "accuracy": round(float(found.right.mean()), 4),
        "log_loss": round(float(found.loss.mean()), 4),
        "escalated": round(float(found.escalated.mean()), 3),
        "accuracy_difference": paired(found.right - base.right),
        "log_loss_difference": paired(found.loss - base.loss),
    }
    print(json.dumps(line), flush=True)


def compressed_mb(file: Path) -> float:
    return round(len(zlib.compress(file.read_bytes(), 6)) / 1e6, 2)


def paired(difference: NDArray[np.float64]) -> str:
    return f"{difference.mean():+.4f} ± {difference.std() / len(difference) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
