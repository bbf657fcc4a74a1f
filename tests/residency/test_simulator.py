"""The benchmark simulator runs, and its claims about the policy hold on a small trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).parent.parent.parent


def test_waits_are_shorter_than_with_lru_and_switches_never_below_the_bound(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ("--experts", "30", "--length", "90", "--rate", "4", "--seeds", "1", "--kind", "poisson")
    command = (sys.executable, str(ROOT / "benchmarks" / "residency.py"), *small, "--json", str(out))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, timeout=240)
    report = orjson.loads(out.read_bytes())
    assert set(report) == {"lru", "lru_ahead", "coe"}
    assert report["coe"]["bound"] <= report["coe"]["switches"]
    assert report["lru_ahead"]["p95_wait_s"] < report["lru"]["p95_wait_s"]
    assert report["coe"]["p50_wait_s"] <= report["coe"]["p95_wait_s"] <= report["lru"]["p95_wait_s"]
    assert report["coe"]["mean_wait_s"] <= report["lru"]["mean_wait_s"]
