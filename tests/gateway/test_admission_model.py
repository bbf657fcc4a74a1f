"""Whatever comes, in whatever order: permits, places and turns are what a simple model says."""

import random
from contextlib import nullcontext

import pytest

from coe.errors import Overloaded
from gateway.request.admission import Ticket
from tests.gateway.tickets import admission_of, holds, leave, lost

pytestmark = pytest.mark.anyio


class Model:
    """The same, the long way: whose body arrives, who holds a permit, by caller, in the order they are served, who
    waits, and who waited and lost its place."""

    def __init__(self, permits: int, room: int) -> None:
        self.permits, self.room = permits, room
        self.arriving: list[Ticket] = []
        self.held: list[Ticket] = []
        self.queues: dict[str | None, list[Ticket]] = {}
        self.lost: list[Ticket] = []

    @property
    def waiting(self) -> list[Ticket]:
        return [ticket for queue in self.queues.values() for ticket in queue]

    def full_for(self, caller: str | None) -> bool:
        if len(self.held) < self.permits or len(self.waiting) < self.room:
            return False
        waiting = [ticket.caller for ticket in self.waiting]
        return all(waiting.count(other) <= waiting.count(caller) + 1 for other in "abc")

    def refuses(self, caller: str) -> bool:
        own = [ticket for ticket in self.arriving if ticket.caller == caller]
        return self.full_for(caller) or len(own) + len(self.arriving) >= 2 * (self.permits + self.room)

    def arrived(self, ticket: Ticket) -> None:
        self.arriving.remove(ticket)
        if len(self.held) < self.permits:
            self.held.append(ticket)
            return
        if len(self.waiting) == self.room:
            self.lost.append(max(self.queues.values(), key=len).pop())
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
        if ticket in self.lost:
            self.lost.remove(ticket)
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
            caller = rng.choice("aaaabbc")
            with pytest.raises(Overloaded) if model.refuses(caller) else nullcontext():
                model.arriving.append(admission.ticket(caller))
        elif action == "arrive" and model.arriving:
            ticket = rng.choice(model.arriving)
            with pytest.raises(Overloaded) if model.full_for(ticket.caller) else nullcontext():
                ticket.arrived()
                model.arrived(ticket)
        elif action == "end" and model.held:
            leave(ticket := rng.choice(model.held))
            model.ended(ticket)
        elif action == "give up" and (some := model.arriving + model.waiting + model.lost):
            leave(ticket := rng.choice(some))
            model.gave_up(ticket)
        assert all(map(holds, model.held))
        assert all(map(lost, model.lost))
        assert not any(holds(ticket) or lost(ticket) for ticket in model.waiting + model.arriving)
        counts = len(model.arriving), len(model.held), len(model.waiting)
        assert (admission.arriving, admission.in_use, admission.queued) == counts
