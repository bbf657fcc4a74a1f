"""Writes quality data: prompts.parquet, scores.parquet and models.csv, each replaced in one step."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coe.errors import ConfigError
from coe.learning.evaluation.probes import Probe
from coe.registry import ExpertSpec

PROMPTS, SCORES, MODELS = "prompts.parquet", "scores.parquet", "models.csv"
SPLIT = "probe"

Score = tuple[str, str, float]
"""Prompt id, expert, score in [0, 1]."""


def require_parquet() -> None:
    """Raises ConfigError where parquet cannot be written, which a run should know before it asks anyone."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("parquet files need pyarrow; run: pip install 'coe[train]'")


def write_quality(
    folder: Path, *, benchmark: str, probes: Sequence[Probe], scores: Iterable[Score], experts: Sequence[ExpertSpec]
) -> None:
    """Write the three files. `benchmark` names the probe set in each; scores that are missing are simply not there."""
    prompts = [
        {
            "benchmark": benchmark,
            "prompt_id": probe.prompt_id,
            "prompt": probe.prompt,
            "category": probe.category,
            "label": "",  # a label would go before the category
            "split": SPLIT,
        }
        for probe in probes
    ]
    _write_parquet(folder / PROMPTS, ("benchmark", "prompt_id", "prompt", "category", "label", "split"), prompts)
    rows = [
        {"benchmark": benchmark, "prompt_id": prompt_id, "model": expert, "score": score}
        for prompt_id, expert, score in scores
    ]
    _write_parquet(folder / SCORES, ("benchmark", "prompt_id", "model", "score"), rows)
    _replace(folder / MODELS, _models(benchmark, experts))


def _models(benchmark: str, experts: Sequence[ExpertSpec]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("benchmark", "model", "active_b", "total_b", "note"))
    for expert in experts:
        table.writerow((benchmark, expert.name, expert.active_parameters_b or "", "", expert.model))
    return text.getvalue().encode()


def _write_parquet(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = [(name, pyarrow.float32() if name == "score" else pyarrow.string()) for name in columns]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(types)), buffer, compression="zstd")
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)
