"""Permits, the queue for them, and whose turn it is."""

import asyncio
import random
from collections import deque
from contextlib import nullcontext

import pytest

from coe.errors import Draining, Overloaded
from coe.registry import Limits
from gateway.admission import LEAST_RETRY, MOST_RETRY, RATE_WINDOW, Admission, Ticket

pytestmark = pytest.mark.anyio


def admission_of(permits: int = 1, *, queued: int = 100, timeout: float = 60.0) -> Admission:
    return Admission(Limits(concurrent_requests=permits, queued_requests=queued, queue_timeout=timeout))


def leave(ticket: Ticket) -> None:
    ticket.__exit__(None, None, None)


async def one(admission: Admission) -> None:
    with admission.ticket("a") as ticket:
        await ticket.permit()


def holds(ticket: Ticket) -> bool:
    return ticket.turn is None or ticket.turn.done()


async def test_callers_are_served_in_turn_however_many_requests_one_has_waiting() -> None:
    admission = admission_of()
    first = admission.ticket("greedy")
    greedy = [admission.ticket("greedy") for _ in range(50)]
    modest = admission.ticket("modest")
    leave(first)
    assert holds(greedy[0])
    leave(greedy[0])
    assert holds(modest)
    leave(modest)
    assert [holds(ticket) for ticket in greedy[1:3]] == [True, False]


async def test_a_ticket_that_is_left_while_waiting_leaves_no_trace() -> None:
    admission = admission_of()
    first = admission.ticket("a")
    waiter = asyncio.create_task(one(admission))
    await asyncio.sleep(0)
    assert (admission.in_use, admission.queued) == (1, 1)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert (admission.in_use, admission.queued) == (1, 0)
    leave(first)
    assert (admission.in_use, admission.queued) == (0, 0)
    leave(admission.ticket("a"))


async def test_no_turn_within_the_queue_timeout_is_overload() -> None:
    admission = admission_of(timeout=0.01)
    first = admission.ticket("a")
    with pytest.raises(Overloaded, match=r"all 1 permits are in use and none came free within 0\.01 s"):
        await one(admission)
    assert admission.queued == 0
    leave(first)


async def test_a_full_queue_refuses_at_once() -> None:
    admission = admission_of(queued=1)
    admission.ticket("a"), admission.ticket("a")
    with pytest.raises(Overloaded, match="as many requests wait for one as may"):
        admission.ticket("b")


async def test_a_closed_gateway_takes_nothing_new_and_serves_those_who_wait() -> None:
    admission = admission_of()
    first, waiting = admission.ticket("a"), admission.ticket("a")
    admission.closed = True
    with pytest.raises(Draining):
        admission.ticket("a")
    leave(first)
    assert holds(waiting)


async def test_more_permits_let_in_who_waits_and_fewer_come_to_count_as_requests_end() -> None:
    admission = admission_of(2)
    tickets = [admission.ticket("a") for _ in range(5)]
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

    tickets = deque([admission.ticket("a")])
    assert retry() == LEAST_RETRY  # nothing is known yet
    tickets.extend(admission.ticket("a") for _ in range(19))
    for _ in range(10):  # end in a window
        leave(tickets.popleft())
        tickets.append(admission.ticket("a"))
    now += RATE_WINDOW
    assert retry() == pytest.approx(20 / (10 / RATE_WINDOW))
    now += RATE_WINDOW
    assert retry() == MOST_RETRY  # nothing has ended since


class Model:
    """The same, the long way: who holds a permit, and by caller, in the order they are served, who waits."""

    def __init__(self, permits: int, room: int) -> None:
        self.permits, self.room = permits, room
        self.held: list[Ticket] = []
        self.queues: dict[str | None, list[Ticket]] = {}

    @property
    def waiting(self) -> list[Ticket]:
        return [ticket for queue in self.queues.values() for ticket in queue]

    def came(self, ticket: Ticket) -> None:
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
        self.queues[ticket.caller].remove(ticket)
        if not self.queues[ticket.caller]:
            del self.queues[ticket.caller]


@pytest.mark.parametrize("seed", range(20))
async def test_it_does_what_a_simple_model_does(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(permits=rng.randint(1, 4), room=rng.randint(0, 12))
    admission = admission_of(model.permits, queued=model.room)
    for _ in range(400):
        action = rng.choice(("come", "come", "end", "give up"))
        if action == "come":
            full = len(model.held) == model.permits and len(model.waiting) == model.room
            with pytest.raises(Overloaded) if full else nullcontext():
                model.came(admission.ticket(rng.choice("abc")))
        elif action == "end" and model.held:
            leave(ticket := rng.choice(model.held))
            model.ended(ticket)
        elif action == "give up" and model.waiting:
            leave(ticket := rng.choice(model.waiting))
            model.gave_up(ticket)
        assert all(map(holds, model.held))
        assert not any(map(holds, model.waiting))
        assert (admission.in_use, admission.queued) == (len(model.held), len(model.waiting))
