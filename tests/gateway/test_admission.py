"""Permits, the queue for them, and the order in which callers get them."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress

import pytest
from starlette.types import Message

from coe.errors import Draining, Overloaded
from coe.registry import Limits
from gateway.request import admission as admissions
from gateway.request.admission import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, RATE_WINDOW, ActiveRequest, Admission
from gateway.request.body import ClientLeftError
from tests.gateway.active_requests import admission_of, arrived, evicted, has_permit, leave, opened

pytestmark = pytest.mark.anyio


async def one(admission: Admission) -> None:
    with admission.open("a", timeout=60.0) as request:
        admission.body_arrived(request)
        await request.wait_for_permit()


async def test_callers_are_served_round_robin_however_many_requests_one_has_waiting() -> None:
    admission = admission_of()
    first = arrived(admission, "greedy")
    greedy = [arrived(admission, "greedy") for _ in range(50)]
    modest = arrived(admission, "modest")
    leave(first)
    assert has_permit(greedy[0])
    leave(greedy[0])
    assert has_permit(modest)
    leave(modest)
    assert [has_permit(request) for request in greedy[1:3]] == [True, False]


def permits_of(requests: Iterable[ActiveRequest]) -> Counter[str | None]:
    """Count the permits of each caller."""
    return Counter(request.caller for request in requests if has_permit(request))


@pytest.mark.parametrize(("permits", "own"), [(1, 1), (2, 1), (3, 2), (20, 19), (1024, 960)])
async def test_a_key_alone_may_have_all_permits_but_a_sixteenth_and_a_caller_without_a_key_all(
    permits: int, own: int
) -> None:
    for caller, count in ("a", own), (None, permits):
        admission = admission_of(permits)
        requests = [arrived(admission, caller) for _ in range(permits + 1)]
        assert permits_of(requests) == {caller: count}
        leave(requests[0])
        assert permits_of(requests[1:]) == {caller: count}


async def test_a_caller_without_a_permit_gets_one_while_any_is_free() -> None:
    admission = admission_of(1024)
    greedy = [arrived(admission, "greedy") for _ in range(1000)]
    modest = [arrived(admission, f"modest-{number}") for number in range(64)]
    assert permits_of(greedy + modest) == {"greedy": 960} | {f"modest-{number}": 1 for number in range(64)}
    assert not has_permit(late := arrived(admission, "late"))
    leave(greedy[0])
    assert has_permit(late)


async def test_callers_at_the_reserve_leave_half_of_it_to_others() -> None:
    admission = admission_of(1024, queued=1000)
    requests = [arrived(admission, caller) for caller in "abcdefgh" for _ in range(961 if caller == "a" else 40)]
    assert list(permits_of(requests).values()) == [960, 32, 16, 8, 4, 2, 1, 1]


@pytest.mark.parametrize("seed", range(5))
async def test_permits_that_come_free_go_to_the_waiting_caller_that_holds_fewest(seed: int) -> None:
    rng, admission = random.Random(seed), admission_of(64, queued=1000)
    requests = [arrived(admission, caller) for caller in "abc" for _ in range(200)]
    assert permits_of(requests) == {"a": 60, "b": 2, "c": 1}
    for _ in range(100):
        before = permits_of(requests)
        request = rng.choice([request for request in requests if has_permit(request)])
        requests.remove(request)
        leave(request)
        before[request.caller] -= 1
        gained = permits_of(requests) - before
        assert all(before[caller] == min(before.values()) for caller in gained)
        assert gained.total() <= 2
    assert sorted(permits_of(requests).values()) == [20, 20, 20]


async def test_a_ticket_that_is_left_while_waiting_leaves_no_trace() -> None:
    admission = admission_of()
    first = arrived(admission, "a")
    waiter = asyncio.create_task(one(admission))
    await asyncio.sleep(0)
    assert (admission.in_use, admission.queued) == (1, 1)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert (admission.in_use, admission.queued) == (1, 0)
    leave(first)
    assert (admission.in_use, admission.queued) == (0, 0)
    leave(arrived(admission, "a"))


async def test_no_permit_within_the_queue_timeout_is_overload() -> None:
    admission = admission_of(timeout=0.01)
    first = arrived(admission, "a")
    with pytest.raises(Overloaded, match=r"1 of 1 are in use.* and none came free within 0\.01 s"):
        await one(admission)
    assert admission.queued == 0
    leave(first)


@pytest.mark.parametrize("room", [0, 1, 6])
async def test_one_caller_may_fill_the_queue_and_is_refused_at_once_then(room: int) -> None:
    admission = admission_of(queued=room)
    for _ in range(1 + room):
        arrived(admission, "a")
    assert admission.queued == room
    with pytest.raises(Overloaded, match="and the queue is full"):
        opened(admission, "a")


async def test_another_finds_a_place_in_a_full_queue_that_of_the_latest_of_who_has_most() -> None:
    admission = admission_of(queued=6)
    first, *greedy = [arrived(admission, "greedy") for _ in range(7)]
    modest = [arrived(admission, "modest") for _ in range(2)]
    third = arrived(admission, "third")
    assert [evicted(request) for request in greedy] == [False] * 3 + [True] * 3
    assert (admission.in_use, admission.queued) == (1, 6)
    with pytest.raises(
        Overloaded, match=r"1 of 1 are in use.* the place in the queue went to a caller with fewer"
    ) as no:
        await greedy[-1].wait_for_permit()
    assert no.value.retry_after == MIN_RETRY_SECONDS
    served = [first, greedy[0], modest[0], third, greedy[1], modest[1], greedy[2]]
    for request in served:
        assert has_permit(request)
        leave(request)
    assert (admission.in_use, admission.queued) == (0, 0)


async def test_callers_take_places_from_one_another_until_they_have_as_many_and_no_longer() -> None:
    admission = admission_of(queued=7)
    first, *greedy = [arrived(admission, "greedy") for _ in range(8)]
    modest = [arrived(admission, "modest") for _ in range(3)]
    for caller in "modest", "greedy":
        with pytest.raises(Overloaded, match="and the queue is full"):
            opened(admission, caller)
    assert [evicted(request) for request in greedy] == [False] * 4 + [True] * 3
    assert not any(map(evicted, modest))
    leave(first)
    assert has_permit(greedy[0])
    assert not evicted(arrived(admission, "greedy"))  # the place that came free


async def test_a_queue_of_one_place_has_no_evictions() -> None:
    admission = admission_of(queued=1)
    arrived(admission, "a"), arrived(admission, "a")
    with pytest.raises(Overloaded, match="and the queue is full"):
        opened(admission, "b")


async def test_who_lost_its_place_leaves_no_trace_whenever_it_leaves() -> None:
    admission = admission_of(queued=2)
    first = arrived(admission, "a")
    waiters = [asyncio.create_task(one(admission)) for _ in range(2)]
    await asyncio.sleep(0)
    second = arrived(admission, "b")
    waiters[1].cancel()  # before it has seen that its place is gone
    await asyncio.wait(waiters[1:])
    assert waiters[1].cancelled()
    assert (admission.in_use, admission.queued) == (1, 2)
    leave(first)
    await waiters[0]
    leave(second)
    assert (admission.in_use, admission.queued) == (0, 0)


async def test_a_place_that_is_evicted_as_the_wait_ends_is_no_permit() -> None:
    admission = admission_of(queued=2, timeout=1e-9)
    first = arrived(admission, "a")
    waiters = [asyncio.create_task(one(admission)) for _ in range(2)]
    await asyncio.sleep(0)
    arrived(admission, "b")
    late, displaced = await asyncio.gather(*waiters, return_exceptions=True)
    assert "none came free within" in str(late)
    assert "went to a caller with fewer waiting" in str(displaced)
    assert (admission.in_use, admission.queued) == (1, 1)
    leave(first)
    assert (admission.in_use, admission.queued) == (1, 0)


async def test_who_finds_the_queue_full_only_once_its_body_is_there_is_refused_then() -> None:
    admission = admission_of(queued=0)
    first, second = opened(admission, "a"), opened(admission, "b")
    admission.body_arrived(second)
    with pytest.raises(Overloaded, match="and the queue is full"):
        admission.body_arrived(first)
    leave(first)
    assert (admission.arriving, admission.in_use, admission.queued) == (0, 1, 0)


async def test_one_caller_may_have_half_of_all_that_arrive_and_tells_why_no_more() -> None:
    admission = admission_of(2, queued=2)
    greedy = [opened(admission, "greedy") for _ in range(4)]
    with pytest.raises(
        Overloaded, match="the bodies of 4 requests are still arriving, 4 of them from this caller"
    ) as no:
        opened(admission, "greedy")
    assert no.value.retry_after == MIN_RETRY_SECONDS
    modest = arrived(admission, "modest")
    assert has_permit(modest)
    leave(greedy.pop())
    admission.body_arrived(greedy[0])
    assert has_permit(greedy[0])
    assert [opened(admission, "greedy").arriving for _ in range(2)] == [True, True]


async def test_many_callers_leave_room_for_another_and_together_keep_to_the_bound() -> None:
    admission = admission_of(10, queued=10)
    for caller in ("a", "b", "c", *map(str, range(40))):
        with suppress(Overloaded):
            for _ in range(100):
                opened(admission, caller)
        if caller in "abc":
            leave(arrived(admission, "another"))
    assert admission.arriving == 40
    with pytest.raises(Overloaded, match="the bodies of 40 requests are still arriving, 0 of them from this caller"):
        opened(admission, "another")


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


async def test_a_closed_gateway_takes_nothing_new_and_serves_those_who_wait() -> None:
    admission = admission_of()
    first, waiting, arriving = arrived(admission, "a"), arrived(admission, "a"), opened(admission, "a")
    admission.closed = True
    with pytest.raises(Draining):
        opened(admission, "a")
    admission.body_arrived(arriving)
    leave(first)
    assert has_permit(waiting)
    leave(waiting)
    assert has_permit(arriving)


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


async def test_the_time_to_come_back_follows_the_rate_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.request.admission.time.monotonic", lambda: now)
    admission = admission_of(queued=19)

    def retry() -> float:
        return admission.overloaded("a", "").retry_after or 0.0

    requests = deque([arrived(admission, "a")])
    assert retry() == MIN_RETRY_SECONDS  # nothing is known yet
    requests.extend(arrived(admission, "a") for _ in range(19))
    for _ in range(10):  # end in a window
        leave(requests.popleft())
        requests.append(arrived(admission, "a"))
    now += RATE_WINDOW
    assert retry() == pytest.approx(20 / (10 / RATE_WINDOW))
    now += RATE_WINDOW
    assert retry() == MAX_RETRY_SECONDS  # nothing has ended since
    for request in requests:
        leave(request)


async def test_requests_notice_that_their_client_left_whenever_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer serves all young requests: those that begin while it waits, end before it, or begin after it."""
    monkeypatch.setattr(admissions, "WATCH_DELAY", 0.05)
    admission, left = admission_of(permits=100), asyncio.Event()
    scope = {"headers": [(b"content-type", b"application/json")]}

    async def run(*, ends: bool) -> None:
        body: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        with admission.open("a", timeout=60.0) as request:
            await request.admit(scope, receive)
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


async def test_an_error_of_one_young_request_does_not_end_the_watch_over_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admissions, "WATCH_DELAY", 0.01)
    admission, slow = admission_of(permits=100), list[str | None]()

    def become_slow(request: admissions.ActiveRequest) -> None:
        slow.append(request.caller)
        if request.caller == "a":
            raise RuntimeError("a defect")

    monkeypatch.setattr(admissions.ActiveRequest, "become_slow", become_slow)
    errors = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    with admission.open("a", timeout=60.0), admission.open("b", timeout=60.0):
        async with asyncio.timeout(60):
            while len(slow) < 2:
                await asyncio.sleep(0.01)
    assert slow == ["a", "b"]
    assert [str(error) for error in errors] == ["a defect"]
