"""The benchmark simulator runs, and its claims about the policy hold on a small trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parent.parent.parent
LENGTH = 90
SLEEPS = {"memory_gb": 8.0, "start_s": 30.0, "stop_s": 1.0, "wake_s": 0.5, "sleep_s": 0.2}
STOPS = {"memory_gb": 8.0, "start_s": 3.0, "stop_s": 1.0, "wake_s": None, "sleep_s": None}


def simulated(folder: Path, *more: str) -> dict[str, Any]:
    out = folder / "report.json"
    small = ("--experts", "30", "--length", str(LENGTH), "--rate", "4", "--seeds", "1", "--kind", "poisson")
    command = (sys.executable, str(ROOT / "benchmarks" / "residency.py"), *small, *more, "--json", str(out))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, timeout=240)
    return dict(orjson.loads(out.read_bytes()))


def test_waits_are_shorter_than_with_lru_and_switches_never_below_the_bound(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    assert set(report) == {"lru", "lru_ahead", "coe"}
    assert report["coe"]["bound"] <= report["coe"]["switches"]
    assert report["lru_ahead"]["p95_wait_s"] < report["lru"]["p95_wait_s"]
    assert report["coe"]["p50_wait_s"] <= report["coe"]["p95_wait_s"] <= report["lru"]["p95_wait_s"]
    assert report["coe"]["mean_wait_s"] <= report["lru"]["mean_wait_s"]


def test_simulated_servers_take_their_measured_times(tmp_path: Path) -> None:
    reports = []
    for name, server in (("sleeps", SLEEPS), ("stops", STOPS)):
        file = tmp_path / name
        file.write_bytes(orjson.dumps({name: server}))
        reports.append(simulated(tmp_path, "--loads", str(file)))
    sleeps, stops = reports
    assert sleeps["lru"]["p95_wait_s"] < 0.5 * stops["lru"]["p95_wait_s"]
    for policy, result in stops.items():  # one at a time, so the last is awake after all of them have started
        assert result["switches"] * STOPS["start_s"] <= LENGTH + result["longest_wait_s"] + 1.0, policy
