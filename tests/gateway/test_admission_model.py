"""Random sequences of events: admission grants, queues and evicts as a simple model does."""

import random
from contextlib import nullcontext

import pytest

from coe.errors import Overloaded
from gateway.request.admission import ActiveRequest
from tests.gateway.active_requests import admission_of, evicted, has_permit, leave, opened

pytestmark = pytest.mark.anyio


class Model:
    """The same, the long way: whose body arrives, who holds a permit, by caller, in the order they are served, who
    waits, and who waited and lost its place."""

    def __init__(self, permits: int, room: int) -> None:
        self.permits, self.room = permits, room
        self.arriving: list[ActiveRequest] = []
        self.held: list[ActiveRequest] = []
        self.queues: dict[str | None, list[ActiveRequest]] = {}
        self.lost: list[ActiveRequest] = []

    @property
    def waiting(self) -> list[ActiveRequest]:
        return [request for queue in self.queues.values() for request in queue]

    def full_for(self, caller: str | None) -> bool:
        if len(self.held) < self.permits or len(self.waiting) < self.room:
            return False
        waiting = [request.caller for request in self.waiting]
        return all(waiting.count(other) <= waiting.count(caller) + 1 for other in "abc")

    def refuses(self, caller: str) -> bool:
        own = [request for request in self.arriving if request.caller == caller]
        return self.full_for(caller) or len(own) + len(self.arriving) >= 2 * (self.permits + self.room)

    def arrived(self, request: ActiveRequest) -> None:
        self.arriving.remove(request)
        if len(self.held) < self.permits:
            self.held.append(request)
            return
        if len(self.waiting) == self.room:
            self.lost.append(max(self.queues.values(), key=len).pop())
        self.queues.setdefault(request.caller, []).append(request)

    def ended(self, request: ActiveRequest) -> None:
        self.held.remove(request)
        if self.queues:
            caller = next(iter(self.queues))
            queue = self.queues.pop(caller)
            self.held.append(queue.pop(0))
            if queue:
                self.queues[caller] = queue

    def gave_up(self, request: ActiveRequest) -> None:
        if request in self.arriving:
            self.arriving.remove(request)
            return
        if request in self.lost:
            self.lost.remove(request)
            return
        self.queues[request.caller].remove(request)
        if not self.queues[request.caller]:
            del self.queues[request.caller]


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
                model.arriving.append(opened(admission, caller))
        elif action == "arrive" and model.arriving:
            request = rng.choice(model.arriving)
            with pytest.raises(Overloaded) if model.full_for(request.caller) else nullcontext():
                admission.body_arrived(request)
                model.arrived(request)
        elif action == "end" and model.held:
            leave(request := rng.choice(model.held))
            model.ended(request)
        elif action == "give up" and (some := model.arriving + model.waiting + model.lost):
            leave(request := rng.choice(some))
            model.gave_up(request)
        assert all(map(has_permit, model.held))
        assert all(map(evicted, model.lost))
        assert not any(has_permit(request) or evicted(request) for request in model.waiting + model.arriving)
        counts = len(model.arriving), len(model.held), len(model.waiting)
        assert (admission.arriving, admission.in_use, admission.queued) == counts
