"""Permits, the queue for them, and the order in which callers get them."""

import asyncio

import pytest
from starlette.types import Message

from coe.errors import Overloaded
from coe.registry import Limits
from gateway.request import admission as admissions
from gateway.request.admission import Admission
from gateway.request.body import ClientLeftError
from tests.gateway.active_requests import admission_of, arrived, has_permit, leave, opened

pytestmark = pytest.mark.anyio


async def one(admission: Admission) -> None:
    with admission.open("a", timeout=60.0) as request:
        admission.body_arrived(request)
        await request.wait_for_permit()


async def test_no_permit_within_the_queue_timeout_is_overload() -> None:
    admission = admission_of(timeout=0.01)
    first = arrived(admission, "a")
    with pytest.raises(Overloaded, match=r"1 of 1 are in use.* and none came free within 0\.01 s"):
        await one(admission)
    assert admission.queued == 0
    leave(first)


async def test_lowered_limits_apply_to_the_next_arrivals_and_to_bodies_that_arrive_later() -> None:
    admission = admission_of(4, queued=4)
    arriving = [opened(admission, "a") for _ in range(4)]
    admission.limits = Limits(concurrent_requests=1, queued_requests=1)
    with pytest.raises(Overloaded, match="still arriving"):
        opened(admission, "b")
    admission.body_arrived(arriving[0])
    admission.body_arrived(arriving[1])
    assert [has_permit(request) for request in arriving] == [True, False, False, False]
    with pytest.raises(Overloaded, match="1 are in use"):
        admission.body_arrived(arriving[2])
    for request in arriving:
        leave(request)
    assert (admission.arriving, admission.in_use, admission.queued) == (0, 0, 0)


async def test_more_permits_let_in_who_waits_and_fewer_come_to_count_as_requests_end() -> None:
    admission = admission_of(2)
    requests = [arrived(admission, None) for _ in range(5)]
    admission.limits = Limits(concurrent_requests=4)
    admission.grant()
    assert [has_permit(request) for request in requests] == [True] * 4 + [False]
    admission.limits = Limits(concurrent_requests=1)
    for request in requests[:3]:
        leave(request)
        assert not has_permit(requests[4])
    leave(requests[3])
    assert has_permit(requests[4])


async def test_requests_notice_that_their_client_left_whenever_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "WATCH_DELAY", 0.05)
    admission, left = admission_of(permits=100), asyncio.Event()
    head = {b"content-type": b"application/json"}

    async def run(*, ends: bool) -> None:
        body: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        with admission.open("a", timeout=60.0) as request:
            await request.admit(head, receive)
            if not ends:
                await asyncio.Event().wait()

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(run(ends=number in (0, 3))))
        await asyncio.sleep(0.1 if number == 3 else 0.01)
    left.set()
    async with asyncio.timeout(60):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, ClientLeftError) for result in results] == [False, True, True, False, True, True]
    assert not admission.active
    assert admission.in_use == 0
