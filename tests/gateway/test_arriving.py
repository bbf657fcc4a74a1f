"""Requests with slow bodies: they hold no permit, and one key's slow bodies do not block other keys."""

import asyncio
from collections.abc import Awaitable

import pytest

from gateway.process.processes import drain
from tests.fakes import Gateway, Response, gateway_of
from tests.gateway.two_keys import BODY, CHAT, ROUTE, bearer, keyed
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


class Sent:
    """Requests of one key that have sent the first half of their body; `rest.set()` sends the second half."""

    def __init__(self, gateway: Gateway, count: int = 1, *, key: str = "mallory", path: str = CHAT) -> None:
        self.rest = asyncio.Event()
        self._admission = gateway.services.admission
        posts = (gateway.post(path, BODY[:9], self.rest, BODY[9:], headers=bearer(key)) for _ in range(count))
        self._tasks = [asyncio.ensure_future(post) for post in posts]

    async def arriving(self) -> int:
        """Return the number of arriving requests, once the others are refused."""
        await wait_until(lambda: len(self._tasks) - len(self.refused()) == self._admission.arriving)
        return self._admission.arriving

    def refused(self) -> list[Response]:
        return [task.result() for task in self._tasks if task.done()]

    def answers(self) -> Awaitable[list[Response]]:
        return asyncio.gather(*self._tasks)


@pytest.mark.parametrize("path", [CHAT, ROUTE])
async def test_one_key_whose_bodies_never_arrive_delays_no_other_key(path: str) -> None:
    async with gateway_of(keyed(concurrent_requests=2, queued_requests=1)) as gateway:
        flood = Sent(gateway, 20, path=path)
        assert await flood.arriving() == 3
        assert gateway.services.admission.in_use == gateway.services.admission.queued == 0
        for _ in range(5):
            assert (await gateway.post(path, BODY, headers=bearer("alice"))).status == 200
        refused = flood.refused()
        flood.rest.set()
        await flood.answers()
        assert gateway.services.admission.arriving == 0
    assert [one.status for one in refused] == [429] * 17
    assert {one.error["code"] for one in refused} == {"overloaded"}
    assert "3 requests are still arriving, 3 of them from this caller" in refused[0].error["message"]
    assert int(refused[0].headers["retry-after"]) >= 1


async def test_a_client_that_leaves_in_mid_body_frees_its_place() -> None:
    async with gateway_of(keyed(concurrent_requests=1)) as gateway:
        asked = asyncio.ensure_future(gateway.post(CHAT, BODY[:9], unfinished=True, headers=bearer("alice")))
        await wait_until(lambda: gateway.services.admission.arriving)
        gateway.leave.set()
        assert (await asked).status == 0
        assert gateway.services.admission.arriving == 0
    assert [record.outcome for record in gateway.records] == ["aborted"]


async def test_a_body_that_arrives_for_longer_than_a_drain_may_take_is_cut_off() -> None:
    async with gateway_of(keyed()) as gateway:
        slow = Sent(gateway)
        await slow.arriving()
        drain(gateway.services, lambda: None, lame_duck=0, finish=0.01)
        (answer,) = await slow.answers()
        assert gateway.services.admission.arriving == 0
    assert (answer.status, answer.error["code"]) == (503, "draining")
