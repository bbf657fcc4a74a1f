"""`/v1/report`: one job at a time, cached for a minute; failures are reported and not cached."""

from __future__ import annotations

import asyncio

import pytest

from coe.errors import JobUnavailable, NotInstalled
from tests.admin.samples import ScriptedJobs
from tests.fakes import Gateway, Response, gateway_of

pytestmark = pytest.mark.anyio


async def report(gateway: Gateway, query: str = "") -> Response:
    return await gateway.post("/v1/report", method="GET", query=query)


async def test_requests_within_a_minute_share_one_report() -> None:
    jobs = ScriptedJobs({"alarms": []})
    jobs.go.clear()
    async with gateway_of(jobs=jobs) as gateway:
        both = asyncio.gather(report(gateway), report(gateway))
        await asyncio.sleep(0)
        jobs.go.set()
        first, second = await both
        third = await report(gateway)
    assert jobs.asked == [("report", "--since", "7d", "--json")]
    assert first.json["report"] == {"alarms": []}
    assert first.body == second.body == third.body


@pytest.mark.parametrize(
    ("error", "status_code"), [(JobUnavailable("away", retry_after=5), 503), (NotInstalled("no scipy"), 501)]
)
async def test_a_failed_report_is_an_error_and_the_next_request_tries_again(error: Exception, status_code: int) -> None:
    jobs = ScriptedJobs(error)
    async with gateway_of(jobs=jobs) as gateway:
        failed = await report(gateway)
        jobs.answer = {"alarms": []}
        again = await report(gateway)
    assert (failed.status, failed.error["message"]) == (status_code, str(error))
    assert again.status == 200


async def test_one_job_runs_for_each_period_and_others_are_refused() -> None:
    jobs = ScriptedJobs({"alarms": []})
    async with gateway_of(jobs=jobs) as gateway:
        for query, expected in (("", 200), ("", 200), ("days=30", 200), ("days=0", 400), ("since=7d", 400)):
            assert (await report(gateway, query)).status == expected
    assert jobs.asked == [("report", "--since", "7d", "--json"), ("report", "--since", "30d", "--json")]
