"""A round's report as files: beside what was promoted, or among the newest reports of what was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from coe.learning.retraining.report import markdown
from coe.learning.round_plot import plot_round

KEPT = 50
"""Reports of rounds that promoted nothing, the newest."""


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.svg into a folder that exists."""
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    plot_round(report, folder / "report.svg")


def keep_report(root: Path, write: Callable[[Path], None], *, kind: str, now: float) -> Path:
    """Have it written to a folder of its own under `root`, named by the time `now` (Unix seconds) and the kind of
    artifact; the oldest make room."""
    folder = root / f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S.%fZ}-{kind}"
    folder.mkdir(parents=True)
    write(folder)
    for old in sorted(root.iterdir())[:-KEPT]:
        shutil.rmtree(old)
    return folder
