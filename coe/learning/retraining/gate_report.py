"""Reports quality and cost of never, always and gated retrieval, and the calibration of the gate's probabilities.

Costs follow ExpertRAG (arXiv 2504.08744): retrieval is paid for the share of questions for which the gate is open. What
is saved against always retrieving is the other share, here in tokens of passages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.learning.retraining.gate_fit import GateExamples, cross_fitted_gates, gate_decisions, gate_estimates
from coe.registry.sections import RetrievalPrice
from coe.retrieval.gate import Array

BINS = 5
"""Bins of equal count in the calibration curve."""


def gate_report(examples: GateExamples, price: RetrievalPrice, *, seed: int = 0) -> dict[str, Any]:
    """By expert and over all: quality and tokens of the three policies, and the calibration.

    Each question is judged by a gate that was fitted without it.
    """
    known = np.isfinite(examples.delta)
    is_open, helps = np.zeros(known.shape, dtype=bool), np.full(known.shape, np.nan)
    for rows, gate in cross_fitted_gates(examples, seed=seed):
        part = examples.part(rows)
        is_open[rows], helps[rows] = gate_decisions(gate, part, price), gate_estimates(gate, part, evidence=True).helps
    experts = {
        name: _policies(examples, is_open[:, [column]], known[:, [column]], [column])
        for column, name in enumerate(examples.experts)
    }
    improved = (examples.delta > 0)[known]
    return {
        "questions": len(examples),
        "all": _policies(examples, is_open, known, list(range(len(examples.experts)))),
        "experts": experts,
        "calibration": calibration(helps[known], improved),
    }


def _policies(
    examples: GateExamples, is_open: NDArray[np.bool_], known: NDArray[np.bool_], columns: list[int]
) -> dict[str, float]:
    without, with_ = examples.without[:, columns][known], examples.with_[:, columns][known]
    tokens = np.broadcast_to(examples.tokens[:, None], known.shape)[known]
    chosen = is_open[known]
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
    """Bins of about equal count: their size, mean probability, and the share that passages helped."""
    bins = np.array_split(np.argsort(probability, kind="stable"), BINS)
    return [
        {"count": len(rows), "probability": float(probability[rows].mean()), "helped": float(improved[rows].mean())}
        for rows in bins
        if len(rows)
    ]


def plot_calibration(bins: list[dict[str, float]], path: Path) -> None:
    """Draw probability against frequency as an image (.png or .svg)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.plot([one["probability"] for one in bins], [one["helped"] for one in bins], marker="o")
    axes.set(xlabel="probability that passages help", ylabel="share that they helped", title="Retrieval gate")
    figure.savefig(path)
