"""What the gate is worth: quality and cost of never, always and gated retrieval, and how well its probabilities hold.

Costs as ExpertRAG accounts them (arXiv 2504.08744): retrieval is paid for the share of questions that the gate opens
for, so what is saved against always consulting is the share of it that stays shut, here in tokens of passages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.learning.retraining.gate_fit import GateExamples, gate_decisions, gate_estimates, held_out
from coe.registry.retrieval import RetrievalPrice
from coe.retrieval.gate import Array

BINS = 5


def gate_report(trials: GateExamples, price: RetrievalPrice, *, seed: int = 0) -> dict[str, Any]:
    """By expert and over all: quality and tokens of the three policies, each question judged by a gate that was fitted
    without it; and bins of equal counts of probability against how often passages helped."""
    known = np.isfinite(trials.delta)
    open_, helps = np.zeros(known.shape, dtype=bool), np.full(known.shape, np.nan)
    for rows, gate in held_out(trials, seed=seed):
        part = trials.part(rows)
        open_[rows], helps[rows] = gate_decisions(gate, part, price), gate_estimates(gate, part, evidence=True).helps
    experts = {
        name: _policies(trials, open_[:, [column]], known[:, [column]], [column])
        for column, name in enumerate(trials.experts)
    }
    improved = (trials.delta > 0)[known]
    return {
        "questions": len(trials),
        "all": _policies(trials, open_, known, list(range(len(trials.experts)))),
        "experts": experts,
        "calibration": calibration(helps[known], improved),
    }


def _policies(
    trials: GateExamples, open_: NDArray[np.bool_], known: NDArray[np.bool_], columns: list[int]
) -> dict[str, float]:
    without, with_ = trials.without[:, columns][known], trials.with_[:, columns][known]
    tokens = np.broadcast_to(trials.tokens[:, None], known.shape)[known]
    chosen = open_[known]
    always, paid = float(tokens.sum()), float(tokens[chosen].sum())
    return {
        "never": float(without.mean()),
        "always": float(with_.mean()),
        "gated": float(np.where(chosen, with_, without).mean()),
        "opened": float(chosen.mean()),
        "tokens_always": always / len(tokens),
        "tokens_gated": paid / len(tokens),
        "saved": 1 - paid / always if always else 0.0,
    }


def calibration(probability: Array, improved: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Bins of about equal counts: how many, their mean probability, and how often passages helped."""
    bins = np.array_split(np.argsort(probability, kind="stable"), BINS)
    return [
        {"count": len(rows), "probability": float(probability[rows].mean()), "helped": float(improved[rows].mean())}
        for rows in bins
        if len(rows)
    ]


def plot_calibration(bins: list[dict[str, float]], path: Path) -> None:
    """Probability against frequency, as an image (.png or .svg)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.plot([one["probability"] for one in bins], [one["helped"] for one in bins], marker="o")
    axes.set(xlabel="probability that passages help", ylabel="share that they helped", title="Retrieval gate")
    figure.savefig(path)
