"""A short run of the kill schedule; the long one is `python -m tests.residency.kill_schedule`."""

from __future__ import annotations

import pytest

from tests.residency.kill_schedule import KINDS, run

pytestmark = pytest.mark.anyio


async def test_when_processes_are_killed_every_request_ends_and_nothing_is_orphaned() -> None:
    report = await run(dict.fromkeys(KINDS), seed=1)
    assert not report.problems, report
    assert report.outcomes["answered"], report
    assert set(report.kills) == set(KINDS)
