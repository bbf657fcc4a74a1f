"""A key whose requests make experts fail takes them away from no other key."""

from collections import Counter

import pytest

from coe.core import Call, Expert
from coe.errors import ExpertUnavailable
from coe.experts.replicas import MAX_FAILURES, Replica, ReplicatedExpert
from tests.fakes import ScriptedExpert, ScriptedReply, gateway_of
from tests.gateway.two_keys import BODY, CHAT, bearer, keyed

pytestmark = pytest.mark.anyio
POISON = BODY.replace(b"code", b"poison code")


class FragileExpert(ScriptedExpert):
    """An expert whose server fails on certain prompts."""

    async def stream(self, call: Call) -> ScriptedReply:
        if "poison" in str(call.fields):
            raise ExpertUnavailable("it answered 500", expert=self.name)
        return await super().stream(call)


@pytest.mark.parametrize(("attackers", "fragile"), [("mallory", 1), ("mallory", 3), (("mallory", "alice"), 3)])
async def test_another_key_gets_every_answer(attackers: str | tuple[str, ...], fragile: int) -> None:
    """Also while the experts rest for all keys, because they failed for two."""
    registry, times = keyed(), 4 * MAX_FAILURES
    experts: dict[str, Expert] = {
        spec.name: ReplicatedExpert(spec, replicas=[Replica(FragileExpert(spec.name, (b"{}",)))])
        for spec in registry.experts[:fragile]
    }
    async with gateway_of(registry, real_experts=experts) as gateway:

        async def statuses(key: str, body: bytes = BODY) -> Counter[int | None]:
            return Counter([(await gateway.post(CHAT, body, headers=bearer(key))).status for _ in range(times)])

        for key in [attackers] if isinstance(attackers, str) else attackers:
            assert await statuses(key, POISON) == {200 if fragile == 1 else 503: times}
        assert await statuses("alice") == {200: times}
        assert {(one.expert, one.reason) for one in gateway.records[-times:]} == {("coder", "routed")}
