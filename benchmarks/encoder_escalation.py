"""Encoder escalation: share of passes and utility of the chosen expert, by the smallest value of information of a pass.

    .venv/bin/python -m benchmarks.encoder_escalation --data DIR --router FOLDER

DIR holds the folders `category` (as for benchmarks/category.py; EACH English prompts a category are taken) and
`quality` (prompts, scores and models, as `coe score` writes them). FOLDER is a trained router over the categories of
experts.yaml. The declared assignment and several plans of measured quality choose the expert. The utility is that under
the true category, categories weigh the same, and differences are paired with those of a pass for every uncertain
prompt."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.category import LEFT_OUT, PLAIN_NAMES, read, sample
from coe.core import FAST_UNCERTAIN, Prediction
from coe.measuring.quality import read_quality
from coe.planning import Assignment, Problem, Uses, expected_utility, information_value, routing_gain, solve
from coe.planning.problem import declared_assignment
from coe.planning.score_table import fit_pseudo_count, tabulate_partly
from coe.registry import load
from coe.routing.classifier import MIN_INFORMATION_VALUE
from routers.cascade import CascadeRouter, load_cascade

EACH = 450
SHARES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the routing gain that a pass must be worth."""
ROOT = Path(__file__).parent.parent
SMALL = ("mathstral-7B", "Meta-Llama-3_1-8B-Instruct", "Phi-3-mini-4k-instruct", "gemma-7b")
PLANS: dict[str, tuple[str, Sequence[str], Mapping[str, float]]] = {
    "llmrouter9": ("llmrouter9", (), {}),
    "llmrouter9, mean of 10B": ("llmrouter9", (), {"mean_active_b": 10}),
    "mmlupro": ("mmlupro", (), {}),
    "mmlupro, mean of 10B": ("mmlupro", (), {"mean_active_b": 10}),
    "mmlupro, four small": ("mmlupro", SMALL, {}),
}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Per prompt: the utility of the expert chosen with the fast heads and after a pass, and the value of one."""

    fast: NDArray[np.float64]
    refined: NDArray[np.float64]
    value: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.38, help="confidence below which the general expert answers"
    )
    options = parser.parse_args()
    router = load_cascade(options.router, threads=1)
    texts, labels = prompts(options.data / "category", router)
    fast = [router.fast_prediction(router.fast_heads(text)) for text in texts]
    refined = router.predict(texts)
    uncertain = np.array([one.stage == FAST_UNCERTAIN for one in fast])
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    print(f"{len(texts)} prompts, {weights @ uncertain:.3f} uncertain")
    for name, assignment in assignments(options.data / "quality", router.categories):
        found = outcome(assignment, labels, fast, refined, options.confidence_threshold)
        report(name, assignment, found, uncertain, weights)


def prompts(folder: Path, router: CascadeRouter) -> tuple[list[str], NDArray[np.int64]]:
    """Return English prompts and their categories, by index."""
    rows = [row for row in read(folder / "train.parquet") if row["category"] not in LEFT_OUT and row["lang"] == "en"]
    rows = [row for row in sample(rows, each=EACH) if not router.fast_heads(row["prompt"]).foreign]
    names = [PLAIN_NAMES.get(row["category"], row["category"]) for row in rows]
    return [row["prompt"] for row in rows], np.array([router.categories.index(name) for name in names])


def assignments(folder: Path, categories: tuple[str, ...]) -> Iterator[tuple[str, Assignment]]:
    """Yield what experts.yaml declares, a declaration with one special category, and the plans of measured quality."""
    registry = load(ROOT / "experts.yaml", environ={})
    yield "experts.yaml", declared_assignment(registry, categories)
    yield "code apart", Assignment.declared(categories, ("coder", "generalist"), {"code": "coder"}, "generalist")
    for name, (benchmark, only, budget) in PLANS.items():
        limited = bool(budget)
        data = read_quality(folder, benchmark=benchmark, only=only, open_only=limited, partly=True)
        coarse = [PLAIN_NAMES.get(one, one) for one in data.coarse]
        rows = [row for row, one in enumerate(coarse) if one in categories]
        known = [categories.index(coarse[row]) for row in rows]
        table = tabulate_partly(categories, data.models, np.eye(len(categories))[known], data.scores[rows])
        strength = fit_pseudo_count([categories[one] for one in known], data.scores[rows])
        quality = table.lower(deviations=1.0, pseudo_count=strength)
        uses = Uses(active_b=np.tile(data.active_b, (len(categories), 1))) if limited else None
        even = np.ones(len(categories))
        yield name, solve(Problem.of(table, quality=quality, weights=even, uses=uses, budget=budget))


def outcome(
    assignment: Assignment,
    labels: NDArray[np.int64],
    fast: Sequence[Prediction],
    refined: Sequence[Prediction],
    confidence_threshold: float,
) -> Outcome:
    utility = np.where(np.isfinite(assignment.quality), assignment.quality, 0.0) - assignment.price
    general, every = assignment.experts.index(assignment.general_expert), list(range(len(assignment.experts)))

    def chosen(found: Prediction) -> int:
        if found.confidence < confidence_threshold:
            return general
        return int(expected_utility(assignment, found.probabilities).argmax())

    before, after = (utility[labels, [chosen(one) for one in found]] for found in (fast, refined))
    value = [
        information_value(assignment, one.probabilities, every, uncertain=one.confidence < confidence_threshold)
        for one in fast
    ]
    return Outcome(before, after, np.array(value))


def report(
    name: str, assignment: Assignment, found: Outcome, uncertain: NDArray[np.bool_], weights: NDArray[np.float64]
) -> None:
    gain = routing_gain(assignment, list(range(len(assignment.experts))))
    most = np.where(uncertain, found.refined, found.fast)
    print(f"{name}: {len(assignment.experts)} experts, routing gain {gain:.4f}, utility {weights @ most:.4f}")
    passes = {
        f"share {share}": uncertain & (found.value > max(MIN_INFORMATION_VALUE, share * gain)) for share in SHARES
    }
    for rule, escalated in {**passes, "never": np.zeros_like(uncertain)}.items():
        loss = np.where(escalated, found.refined, found.fast) - most
        mean = weights @ loss
        error = np.sqrt(weights**2 @ (loss - mean) ** 2)
        print(f"  {rule:10} passes {weights @ escalated:.3f}  utility {mean:+.5f} ± {error:.5f}")


if __name__ == "__main__":
    main()
