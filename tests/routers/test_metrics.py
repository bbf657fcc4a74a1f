"""Metrics that training reports beyond accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

Built = tuple[Path, dict[str, Any], list[Any]]


def test_the_confusion_counts_every_prompt_once_and_agrees_with_the_accuracy(built: Built) -> None:
    _, metrics, _ = built
    counts = np.array(metrics["confusion"]["counts"])
    assert counts.sum() == metrics["examples"]
    assert counts.trace() / counts.sum() == pytest.approx(metrics["accuracy"])
    rows = dict(zip(metrics["confusion"]["categories"], counts, strict=True))
    assert {name: row.sum() for name, row in rows.items()} == {"cooking": 41, "astronomy": 41, "football": 40}
    for name, share in metrics["accuracy_by_category"].items():
        own = metrics["confusion"]["categories"].index(name)
        assert rows[name][own] / rows[name].sum() == pytest.approx(share)


def test_the_risk_curve_has_the_confidence_at_each_coverage(built: Built) -> None:
    curve = built[1]["risk_coverage"]
    assert [point["confidence"] for point in curve] == sorted((p["confidence"] for p in curve), reverse=True)
    assert (curve[-1]["coverage"], curve[-1]["risk"]) == (1.0, pytest.approx(1 - built[1]["accuracy"]))
