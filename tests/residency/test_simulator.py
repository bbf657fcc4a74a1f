"""The residency benchmark runs, and the service's policy beats LRU on a small trace."""

from __future__ import annotations

from benchmarks.residency import Traffic, measure


def test_waits_are_shorter_than_with_lru_and_switches_never_below_the_bound() -> None:
    report = measure(["poisson"], [Traffic(experts=30, rate=4.0, length=90.0, seed=0)], max_wait=90.0)["poisson"]
    assert 0 < report["bound"]["switches"] <= report["coe"]["switches"]
    assert report["coe"]["mean_wait_s"] < report["lru"]["mean_wait_s"]
    assert report["coe"]["p50_wait_s"] <= report["coe"]["p95_wait_s"] < report["lru"]["p95_wait_s"]
