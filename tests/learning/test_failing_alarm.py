"""`coe report` with an expert that does not answer."""

from __future__ import annotations

import time

from coe.artifacts.redis import TrafficReport
from coe.reports.report import report
from coe.settings import Settings
from tests.learning.samples import record
from tests.learning.test_report import logged, settings

__all__ = ["settings"]


def test_a_dead_expert_of_half_the_traffic_is_an_alarm_and_a_share_of_fallbacks(settings: Settings) -> None:
    now = time.time()
    dead = {"reason": "fallback", "fallback_from": "coder", "cause": "connection_refused", "expert": "generalist"}
    logged(
        settings, [record(f"r{n}", time=now - 60 + n, **(dead if n % 2 else {"expert": "painter"})) for n in range(40)]
    )
    found = report(settings, now=now)
    (alarm,) = found["alarms"]
    assert (alarm["kind"], alarm["expert"], alarm["value"]) == ("failing", "coder", 1.0)
    assert "connection_refused 20" in alarm["sentence"]
    assert found["traffic"]["reasons"]["fallback"] == 0.5
    assert TrafficReport.of(found, now=now).alarms == {"failing": ("coder",)}


def test_answers_from_the_cache_do_not_hide_that_an_expert_fails(settings: Settings) -> None:
    now = time.time()
    failed = {"outcome": "expert_unavailable", "cause": "unauthorized", "reason": "routed"}
    hit = {"reason": "cached", "cache": "hit"}
    found = [record(f"r{n}", time=now - 60, **(failed if n < 20 else hit)) for n in range(1000)]
    logged(settings, found)
    (alarm,) = report(settings, now=now)["alarms"]
    assert (alarm["kind"], alarm["value"]) == ("failing", 1.0)
