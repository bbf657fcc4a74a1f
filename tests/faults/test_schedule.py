"""A short run of the fault schedule; the long one is `python -m tests.faults.schedule`."""

import pytest

from tests.faults.schedule import run
from tests.records.redis_server import MISSING, installed

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(not installed(), reason=MISSING)
async def test_under_random_faults_every_request_is_answered_and_recorded_once_and_nothing_leaks() -> None:
    report = await run(500, seed=1)
    assert not report.problems, report
    assert len(report.answered) + report.left == 500
