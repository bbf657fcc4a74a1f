"""Random sequences of events: admission grants and queues as a simple model does."""

import random
from collections.abc import Sequence
from contextlib import nullcontext

import pytest

from coe.errors import Overloaded
from gateway.request.admission import ActiveRequest
from tests.gateway.active_requests import admission_of, has_permit, leave, opened

pytestmark = pytest.mark.anyio


class Model:
    """The same, the long way: whose body arrives, who holds a permit, by caller, in the order they are served, and who
    waits."""

    def __init__(self, permits: int, room: int) -> None:
        self.permits, self.room = permits, room
        self.arriving: list[ActiveRequest] = []
        self.held: list[ActiveRequest] = []
        self.queues: dict[str | None, list[ActiveRequest]] = {}

    @property
    def waiting(self) -> list[ActiveRequest]:
        return [request for queue in self.queues.values() for request in queue]

    def holds(self, caller: str | None) -> int:
        return [request.caller for request in self.held].count(caller)

    def may_run(self, caller: str | None) -> bool:
        return self.allows(caller, self.permits, [request.caller for request in self.held])

    def full_for(self, caller: str | None) -> bool:
        places = [request.caller for request in self.waiting]
        return not self.may_run(caller) and not self.allows(caller, self.room, places)

    def allows(self, caller: str | None, capacity: int, holders: list[str | None]) -> bool:
        free = capacity - len(holders)
        reserve = 0 if caller is None else max(1, capacity // 16)
        return free > reserve or free > holders.count(caller)

    def refuses(self, caller: str | None) -> bool:
        own = [request for request in self.arriving if request.caller == caller]
        return self.full_for(caller) or len(own) + len(self.arriving) >= 2 * (self.permits + self.room)

    def arrived(self, request: ActiveRequest) -> None:
        self.arriving.remove(request)
        if self.may_run(request.caller):
            self.held.append(request)
            return
        self.queues.setdefault(request.caller, []).append(request)

    def ended(self, request: ActiveRequest) -> None:
        self.held.remove(request)
        while entitled := [caller for caller in self.queues if self.may_run(caller)]:
            caller = min(entitled, key=self.holds)
            queue = self.queues.pop(caller)
            self.held.append(queue.pop(0))
            if queue:
                self.queues[caller] = queue

    def gave_up(self, request: ActiveRequest) -> None:
        if request in self.arriving:
            self.arriving.remove(request)
            return
        self.queues[request.caller].remove(request)
        if not self.queues[request.caller]:
            del self.queues[request.caller]


@pytest.mark.parametrize("callers", ["aaaabbc", (None,)])
@pytest.mark.parametrize("seed", range(20))
async def test_it_does_what_a_simple_model_does(seed: int, callers: Sequence[str | None]) -> None:
    rng = random.Random(seed)
    model = Model(permits=rng.choice((1, 2, 3, 4, 40)), room=rng.randint(0, 12))
    admission = admission_of(model.permits, queued=model.room)
    for _ in range(600):
        action = rng.choice(("come", "come", "come", "arrive", "arrive", "end", "give up"))
        if action == "come":
            caller = rng.choice(callers)
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
        elif action == "give up" and (some := model.arriving + model.waiting):
            leave(request := rng.choice(some))
            model.gave_up(request)
        assert all(map(has_permit, model.held))
        assert not any(map(has_permit, model.waiting + model.arriving))
        assert all(model.holds(caller) for caller in model.queues) or len(model.held) == model.permits
        counts = len(model.arriving), len(model.held), len(model.waiting)
        assert (admission.arriving, admission.in_use, admission.queued) == counts
