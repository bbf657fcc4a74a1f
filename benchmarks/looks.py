"""What the closer look at unsure prompts is worth, by what is at stake: how often it is made, and who answers then.

    .venv/bin/python -m benchmarks.looks --data DIR --router FOLDER

DIR holds train.parquet as for benchmarks/category.py, of which EACH prompts a category are taken; FOLDER is a trained
router over the categories of experts.yaml, whose assignment says who should answer. Prompts count as `expert` where the
expert of their own category would answer, as `category` where that is the likeliest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.category import LEFT_OUT, PLAIN_NAMES, read, sample
from coe.core import Prediction
from coe.mapping import Assignment, decision_risk, expected_utility
from coe.mapping.declaration import declared_assignment
from coe.registry import load
from routers.cascade import load_cascade

EACH = 200
STAKES = (0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 1.1)
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--doubt", type=float, default=0.446, help="confidence below which the general expert answers")
    options = parser.parse_args()
    rows = sample([row for row in read(options.data / "train.parquet") if row["category"] not in LEFT_OUT], each=EACH)
    texts = [row["prompt"] for row in rows]
    names = [PLAIN_NAMES.get(row["category"], row["category"]) for row in rows]
    router = load_cascade(options.router, threads=1)
    registry = load(ROOT / "experts.yaml", environ={})
    assignment = declared_assignment(registry, router.categories)
    quick = [router.guess(router.glance(text)) for text in texts]
    unsure = [index for index, found in enumerate(quick) if not router.sure(found)]
    looked = dict(zip(unsure, router.predict([texts[index] for index in unsure]), strict=True))
    everyone = range(len(assignment.experts))
    stakes = {index: decision_risk(assignment, quick[index].probabilities, everyone) for index in unsure}
    wanted = [registry.assignment.get(name, registry.general_expert) for name in names]
    print(f"{len(texts)} prompts, {len(unsure) / len(texts):.3f} unsure")
    for least in STAKES:
        looks = {
            i
            for i in unsure
            if stakes[i] > least or (least <= 1 and quick[i].confidence < options.confidence_threshold)
        }
        found = [looked[i] if i in looks else quick[i] for i in range(len(texts))]
        asked = [_answers(assignment, one, options.confidence_threshold, registry.general_expert) for one in found]
        expert = np.mean([one == two for one, two in zip(asked, wanted, strict=True)])
        category = np.mean([router.categories[one.best] == two for one, two in zip(found, names, strict=True)])
        print(f"stake > {least:.2f}: looks {len(looks) / len(texts):.3f}  expert {expert:.4f}  category {category:.4f}")


def _answers(assignment: Assignment, found: Prediction, confidence_threshold: float, general: str) -> str:
    if found.confidence < confidence_threshold:
        return general
    return assignment.experts[int(expected_utility(assignment, found.probabilities).argmax())]


if __name__ == "__main__":
    main()
