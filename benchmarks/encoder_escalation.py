"""Encoder escalation: accuracy of the chosen expert, by how large the decision risk must be to escalate a prompt.

    .venv/bin/python -m benchmarks.encoder_escalation --data DIR --router FOLDER

DIR holds train.parquet as for benchmarks/category.py, of which EACH prompts a category are taken; FOLDER is a trained
router over the categories of experts.yaml, whose assignment names the expert for each prompt. Prompts count as `expert`
where the expert of their own category would answer, as `category` where that is the likeliest."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.category import LEFT_OUT, PLAIN_NAMES, read, sample
from coe.core import FAST_UNCERTAIN, Prediction
from coe.mapping import Assignment, decision_risk, expected_utility
from coe.mapping.problem import declared_assignment
from coe.registry import load
from routers.cascade import load_cascade

EACH = 200
RISK_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 1.1)
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.446, help="confidence below which the general expert answers"
    )
    options = parser.parse_args()
    rows = sample([row for row in read(options.data / "train.parquet") if row["category"] not in LEFT_OUT], each=EACH)
    texts = [row["prompt"] for row in rows]
    names = [PLAIN_NAMES.get(row["category"], row["category"]) for row in rows]
    router = load_cascade(options.router, threads=1)
    registry = load(ROOT / "experts.yaml", environ={})
    assignment = declared_assignment(registry, router.categories)
    fast = [router.fast_prediction(router.fast_heads(text)) for text in texts]
    uncertain = [index for index, found in enumerate(fast) if found.stage == FAST_UNCERTAIN]
    refined = dict(zip(uncertain, router.predict([texts[index] for index in uncertain]), strict=True))
    experts = range(len(assignment.experts))
    risks = {index: decision_risk(assignment, fast[index].probabilities, experts) for index in uncertain}
    wanted = [registry.assignment.get(name, registry.general_expert) for name in names]
    print(f"{len(texts)} prompts, {len(uncertain) / len(texts):.3f} uncertain")
    for threshold in RISK_THRESHOLDS:
        escalated = {
            i
            for i in uncertain
            if risks[i] > threshold or (threshold <= 1 and fast[i].confidence < options.confidence_threshold)
        }
        found = [refined[i] if i in escalated else fast[i] for i in range(len(texts))]
        chosen = [_expert(assignment, one, options.confidence_threshold, registry.general_expert) for one in found]
        expert = np.mean([one == two for one, two in zip(chosen, wanted, strict=True)])
        category = np.mean([router.categories[one.best] == two for one, two in zip(found, names, strict=True)])
        print(
            f"risk > {threshold:.2f}: escalated {len(escalated) / len(texts):.3f}  "
            f"expert {expert:.4f}  category {category:.4f}"
        )


def _expert(assignment: Assignment, found: Prediction, confidence_threshold: float, general: str) -> str:
    if found.confidence < confidence_threshold:
        return general
    return assignment.experts[int(expected_utility(assignment, found.probabilities).argmax())]


if __name__ == "__main__":
    main()
