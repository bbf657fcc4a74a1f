"""Permits, the queue for them, and whose turn it is."""

import asyncio
import random
from collections import deque
from contextlib import nullcontext, suppress

import pytest

from coe.errors import Draining, Overloaded
from coe.registry import Limits
from gateway.admission import LEAST_RETRY, MOST_RETRY, RATE_WINDOW, Admission, Ticket

pytestmark = pytest.mark.anyio


def admission_of(permits: int = 1, *, queued: int = 100, timeout: float = 60.0) -> Admission:
    return Admission(Limits(concurrent_requests=permits, queued_requests=queued, queue_timeout=timeout))


def asked(admission: Admission, caller: str | None) -> Ticket:
    """A request whose body came with it."""
    ticket = admission.ticket(caller)
    ticket.arrived()
    return ticket


def leave(ticket: Ticket) -> None:
    ticket.__exit__(None, None, None)


async def one(admission: Admission) -> None:
    with asked(admission, "a") as ticket:
        await ticket.permit()


def holds(ticket: Ticket) -> bool:
    return not ticket.arriving and (ticket.turn is None or ticket.turn.done())


async def test_callers_are_served_in_turn_however_many_requests_one_has_waiting() -> None:
    admission = admission_of()
    first = asked(admission, "greedy")
    greedy = [asked(admission, "greedy") for _ in range(50)]
    modest = asked(admission, "modest")
    leave(first)
    assert holds(greedy[0])
    leave(greedy[0])
    assert holds(modest)
    leave(modest)
    assert [holds(ticket) for ticket in greedy[1:3]] == [True, False]


async def test_a_ticket_that_is_left_while_waiting_leaves_no_trace() -> None:
    admission = admission_of()
    first = asked(admission, "a")
    waiter = asyncio.create_task(one(admission))
    await asyncio.sleep(0)
    assert (admission.in_use, admission.queued) == (1, 1)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert (admission.in_use, admission.queued) == (1, 0)
    leave(first)
    assert (admission.in_use, admission.queued) == (0, 0)
    leave(asked(admission, "a"))


async def test_no_turn_within_the_queue_timeout_is_overload() -> None:
    admission = admission_of(timeout=0.01)
    first = asked(admission, "a")
    with pytest.raises(Overloaded, match=r"all 1 permits are in use and none came free within 0\.01 s"):
        await one(admission)
    assert admission.queued == 0
    leave(first)


async def test_a_full_queue_refuses_at_once() -> None:
    admission = admission_of(queued=1)
    asked(admission, "a"), asked(admission, "a")
    with pytest.raises(Overloaded, match="as many requests wait for one as may"):
        admission.ticket("b")


async def test_who_finds_the_queue_full_only_once_its_body_is_there_is_refused_then() -> None:
    admission = admission_of(queued=0)
    first, second = admission.ticket("a"), admission.ticket("b")
    second.arrived()
    with first, pytest.raises(Overloaded, match="as many requests wait for one as may"):
        first.arrived()
    assert (admission.arriving, admission.in_use, admission.queued) == (0, 1, 0)


async def test_one_caller_may_have_half_of_all_that_arrive_and_tells_why_no_more() -> None:
    admission = admission_of(2, queued=2)
    greedy = [admission.ticket("greedy") for _ in range(4)]
    with pytest.raises(
        Overloaded, match="the bodies of 4 requests are still arriving, 4 of them from this caller"
    ) as no:
        admission.ticket("greedy")
    assert no.value.retry_after == LEAST_RETRY
    modest = asked(admission, "modest")
    assert holds(modest)
    leave(greedy.pop())
    greedy[0].arrived()
    assert holds(greedy[0])
    assert [admission.ticket("greedy").arriving for _ in range(2)] == [True, True]


async def test_many_callers_leave_room_for_another_and_together_keep_to_the_bound() -> None:
    admission = admission_of(10, queued=10)
    for caller in ("a", "b", "c", *map(str, range(40))):
        with suppress(Overloaded):
            for _ in range(100):
                admission.ticket(caller)
        if caller in "abc":
            leave(asked(admission, "another"))
    assert admission.arriving == 40
    with pytest.raises(Overloaded, match="the bodies of 40 requests are still arriving, 0 of them from this caller"):
        admission.ticket("another")


async def test_lowered_limits_hold_for_who_arrives_next_and_for_whose_body_comes_then() -> None:
    admission = admission_of(4, queued=4)
    arriving = [admission.ticket("a") for _ in range(4)]
    admission.limits = Limits(concurrent_requests=1, queued_requests=1)
    with pytest.raises(Overloaded, match="still arriving"):
        admission.ticket("b")
    arriving[0].arrived()
    arriving[1].arrived()
    assert [holds(ticket) for ticket in arriving] == [True, False, False, False]
    with pytest.raises(Overloaded, match="all 1 permits"):
        arriving[2].arrived()
    for ticket in arriving:
        leave(ticket)
    assert (admission.arriving, admission.in_use, admission.queued) == (0, 0, 0)


async def test_a_closed_gateway_takes_nothing_new_and_serves_those_who_wait() -> None:
    admission = admission_of()
    first, waiting, arriving = asked(admission, "a"), asked(admission, "a"), admission.ticket("a")
    admission.closed = True
    with pytest.raises(Draining):
        admission.ticket("a")
    arriving.arrived()
    leave(first)
    assert holds(waiting)
    leave(waiting)
    assert holds(arriving)


async def test_more_permits_let_in_who_waits_and_fewer_come_to_count_as_requests_end() -> None:
    admission = admission_of(2)
    tickets = [asked(admission, "a") for _ in range(5)]
    admission.limits = Limits(concurrent_requests=4)
    admission.grant()
    assert [holds(ticket) for ticket in tickets] == [True] * 4 + [False]
    admission.limits = Limits(concurrent_requests=1)
    for ticket in tickets[:3]:
        leave(ticket)
        assert not holds(tickets[4])
    leave(tickets[3])
    assert holds(tickets[4])


async def test_the_time_to_come_back_follows_the_rate_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.admission.time.monotonic", lambda: now)
    admission = admission_of(queued=19)

    def retry() -> float:
        return admission.overloaded("").retry_after or 0.0

    tickets = deque([asked(admission, "a")])
    assert retry() == LEAST_RETRY  # nothing is known yet
    tickets.extend(asked(admission, "a") for _ in range(19))
    for _ in range(10):  # end in a window
        leave(tickets.popleft())
        tickets.append(asked(admission, "a"))
    now += RATE_WINDOW
    assert retry() == pytest.approx(20 / (10 / RATE_WINDOW))
    now += RATE_WINDOW
    assert retry() == MOST_RETRY  # nothing has ended since


class Model:
    """The same, the long way: whose body arrives, who holds a permit, and by caller, in the order they are served, who
    waits."""

    def __init__(self, permits: int, room: int) -> None:
        self.permits, self.room = permits, room
        self.arriving: list[Ticket] = []
        self.held: list[Ticket] = []
        self.queues: dict[str | None, list[Ticket]] = {}

    @property
    def waiting(self) -> list[Ticket]:
        return [ticket for queue in self.queues.values() for ticket in queue]

    @property
    def full(self) -> bool:
        return len(self.held) == self.permits and len(self.waiting) == self.room

    def refuses(self, caller: str) -> bool:
        own = [ticket for ticket in self.arriving if ticket.caller == caller]
        return self.full or len(own) + len(self.arriving) >= 2 * (self.permits + self.room)

    def arrived(self, ticket: Ticket) -> None:
        self.arriving.remove(ticket)
        if len(self.held) < self.permits:
            self.held.append(ticket)
        else:
            self.queues.setdefault(ticket.caller, []).append(ticket)

    def ended(self, ticket: Ticket) -> None:
        self.held.remove(ticket)
        if self.queues:
            caller = next(iter(self.queues))
            queue = self.queues.pop(caller)
            self.held.append(queue.pop(0))
            if queue:
                self.queues[caller] = queue

    def gave_up(self, ticket: Ticket) -> None:
        if ticket in self.arriving:
            self.arriving.remove(ticket)
            return
        self.queues[ticket.caller].remove(ticket)
        if not self.queues[ticket.caller]:
            del self.queues[ticket.caller]


@pytest.mark.parametrize("seed", range(20))
async def test_it_does_what_a_simple_model_does(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(permits=rng.randint(1, 4), room=rng.randint(0, 12))
    admission = admission_of(model.permits, queued=model.room)
    for _ in range(600):
        action = rng.choice(("come", "come", "come", "arrive", "arrive", "end", "give up"))
        if action == "come":
            caller = rng.choice("abc")
            with pytest.raises(Overloaded) if model.refuses(caller) else nullcontext():
                model.arriving.append(admission.ticket(caller))
        elif action == "arrive" and model.arriving:
            ticket = rng.choice(model.arriving)
            with pytest.raises(Overloaded) if model.full else nullcontext():
                ticket.arrived()
                model.arrived(ticket)
        elif action == "end" and model.held:
            leave(ticket := rng.choice(model.held))
            model.ended(ticket)
        elif action == "give up" and (some := model.arriving + model.waiting):
            leave(ticket := rng.choice(some))
            model.gave_up(ticket)
        assert all(map(holds, model.held))
        assert not any(map(holds, model.waiting + model.arriving))
        counts = len(model.arriving), len(model.held), len(model.waiting)
        assert (admission.arriving, admission.in_use, admission.queued) == counts
