"""`/v1/report`: one job at a time, cached for a minute; failures are reported and not cached."""

from __future__ import annotations

import asyncio

import pytest

from coe.errors import JobUnavailable, NotInstalled
from gateway.process.jobs import MAX_REPORTS, Reports
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
    assert jobs.asked == [("report", "--days", "7")]
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
    assert jobs.asked == [("report", "--days", "7"), ("report", "--days", "30")]


async def test_a_report_whose_task_was_cancelled_is_computed_again() -> None:
    jobs = ScriptedJobs({"alarms": []})
    jobs.go.clear()
    reports = Reports(jobs)
    first = asyncio.create_task(reports.get("report"))
    await asyncio.sleep(0)
    next(task for task in asyncio.all_tasks() if task.get_name() == "coe-report").cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    jobs.go.set()
    assert (await reports.get("report"))[1] == {"alarms": []}


async def test_reports_of_other_arguments_are_cached_up_to_a_limit() -> None:
    jobs = ScriptedJobs({})
    reports = Reports(jobs)
    for number in (*range(MAX_REPORTS + 1), MAX_REPORTS, 0):
        await reports.get("report", str(number))
    assert [arguments[1] for arguments in jobs.asked] == [str(number) for number in (*range(MAX_REPORTS + 1), 0)]
