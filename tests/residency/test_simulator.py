"""The simulator runs, and what it says of the service's policy holds on a small trace too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).parent.parent.parent


def test_the_service_switches_less_than_the_order_of_arrival_and_never_below_the_bound(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ("--experts", "30", "--length", "90", "--rate", "4", "--seeds", "1", "--kind", "poisson")
    command = (sys.executable, str(ROOT / "benchmarks" / "residency.py"), *small, "--json", str(out))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, timeout=60)
    report = orjson.loads(out.read_bytes())
    assert set(report) == {"fcfs_lru", "lru", "coe", "offline"}
    assert report["offline"]["bound"] <= report["coe"]["switches"] < 0.5 * report["fcfs_lru"]["switches"]
    assert report["coe"]["p50_wait_s"] <= report["coe"]["p95_wait_s"] <= report["fcfs_lru"]["p95_wait_s"]
