"""The cache in the request path: bytes, headers, records, limits, metrics, and which callers share answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.artifacts.manifest import GATE
from coe.errors import ExpertUnavailable
from coe.learning.experience import load_experience
from coe.learning.log_frame import frame_of
from coe.records.record import Feedback
from gateway import cache as cache_step
from tests.access.samples import key_of
from tests.cache.requests import cached, send_chat, uses
from tests.fakes import gateway_of
from tests.recipes.members import answer, stream
from tests.retrieval.gates import ScriptedRetrieval, gate_of, passage

pytestmark = pytest.mark.anyio


async def test_an_identical_request_gets_the_same_bytes_without_a_call() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        first, second = await send_chat(gateway), await send_chat(gateway)
        assert (first.status, second.status) == (200, 200)
        assert first.body == second.body == answer("fine")[0]
        assert (first.headers["x-coe-cache"], second.headers["x-coe-cache"]) == ("miss", "hit")
        assert len(gateway.experts["generalist"].calls) == 1
        same = ("content-type", "x-coe-expert", "x-coe-category", "x-coe-confidence", "x-coe-router")
        assert [first.headers[name] for name in same] == [second.headers[name] for name in same]
        assert (second.headers["x-coe-reason"], second.headers["x-coe-attempts"]) == ("cached", "0")


async def test_a_hit_is_recorded_at_no_cost_with_the_expert_that_wrote_the_answer() -> None:
    prices = {"generalist": {"input": 2.0, "output": 10.0}}
    declared = cached()
    experts = [one.model_dump(mode="json") | {"prices": prices.get(one.name, {})} for one in declared.experts]
    async with gateway_of(cached(experts=experts), generalist=answer("fine")) as gateway:
        await send_chat(gateway)
        await send_chat(gateway)
        miss, hit = gateway.records
        assert (miss.cache, hit.cache, miss.reason, hit.reason) == ("miss", "hit", "routed", "cached")
        assert miss.cost is not None
        assert miss.cost > 0
        assert (hit.cost, hit.attempts, hit.first_token_ms, hit.propensity) == (0.0, 0, None, 1.0)
        kept = ("expert", "category", "probabilities", "in_distribution", "digest", "input_tokens", "output_tokens")
        assert [getattr(miss, name) for name in kept] == [getattr(hit, name) for name in kept]
        assert hit.candidates == ("generalist",)
        assert (hit.outcome, hit.request_id != miss.request_id) == ("ok", True)


async def test_a_stream_is_replayed_verbatim_and_has_a_key_of_its_own() -> None:
    script = stream("fi", "ne")
    async with gateway_of(cached(), generalist=script) as gateway:
        first, second = await send_chat(gateway, stream=True), await send_chat(gateway, stream=True)
        assert first.body == second.body == b"".join(script)
        assert second.headers["x-coe-cache"] == "hit"
        assert second.headers["content-type"] == "text/event-stream"
        gateway.experts["generalist"].script = answer("fine")
        assert await uses(gateway, {}, {}, {"stream": False}, {"stream": None}) == ["miss", "hit", "hit", "hit"]


async def test_the_answer_of_another_expert_than_the_plans_choice_is_not_stored() -> None:
    async with gateway_of(
        cached(), coder=ExpertUnavailable("down", expert="x"), painter=answer("p"), generalist=answer("g")
    ) as (gateway):
        fallen_back = await send_chat(gateway, "code please")
        assert (fallen_back.headers["x-coe-reason"], fallen_back.headers["x-coe-cache"]) == ("fallback", "miss")
        gateway.experts["coder"].script = answer("c")
        assert (await send_chat(gateway, "code please")).body == answer("c")[0]
        assert (await send_chat(gateway, "code please")).headers["x-coe-cache"] == "hit"


async def test_tenants_do_not_share_answers_and_the_keys_of_a_tenant_do() -> None:
    keys = [key_of("alice", tenant="acme"), key_of("ann", tenant="acme"), key_of("bob"), key_of("private", cache=False)]
    declared = cached(access={"keys": [key.model_dump() for key in keys]})
    async with gateway_of(declared, generalist=answer("fine")) as gateway:

        def by(key: str) -> dict[str, Any]:
            return {"headers": {"x-api-key": key}}

        assert await uses(gateway, by("alice"), by("ann"), by("bob"), by("bob")) == ["miss", "hit", "miss", "hit"]
        assert await uses(gateway, by("private"), by("private")) == [None, None]
        assert [record.tenant for record in gateway.records][:4] == ["acme", "acme", "bob", "bob"]


async def test_a_hit_counts_as_a_request_of_the_key_and_takes_no_tokens_or_dollars() -> None:
    limits = {"requests_per_minute": 3, "tokens_per_minute": 1000, "dollars_per_day": 1.0}
    declared = cached(access={"keys": [key_of("alice", limits=limits).model_dump()]})
    async with gateway_of(declared, generalist=answer("fine")) as gateway:
        sent = [await send_chat(gateway, headers={"x-api-key": "alice"}, max_tokens=100) for _ in range(4)]
        assert [response.status for response in sent] == [200, 200, 200, 429]
        left = [response.headers["x-ratelimit-remaining-requests"] for response in sent[:3]]
        assert left == ["2", "1", "0"]
        used = [1000 - int(response.headers["x-ratelimit-remaining-tokens"]) for response in sent[1:3]]
        assert max(used) <= 10  # of the first request's tokens, and one that every request needs at its start


async def test_a_reload_and_a_promotion_change_the_key() -> None:
    async with gateway_of(cached(), generalist=answer("old")) as gateway:
        assert await uses(gateway, {}, {}) == ["miss", "hit"]
        services = gateway.services
        gateway.experts["generalist"].script = answer("new")
        services.replace(replace(services.snapshot, versions={GATE: "v2"}))
        assert (await send_chat(gateway)).body == answer("new")[0]
        assert (await send_chat(gateway)).headers["x-coe-cache"] == "hit"
        services.replace(replace(services.snapshot, versions={}))
        assert (await send_chat(gateway)).body == answer("old")[0]  # the state of the first answer is in use again


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, True),
        ({"cache": {"ttl": 5}}, True),
        ({"limits": {"queue_timeout": 5}}, True),
        ({"policy": {"sticky_margin": 0.3}}, False),
        ({"retrieval": {"max_passages": 3}}, False),
        ({"assignment": {"code": "coder", "general": "painter"}}, False),
    ],
)
async def test_gateways_share_answers_as_far_as_they_would_decide_alike(
    redis_url: str, changes: dict[str, Any], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_step, "LOOKUP_SECONDS", 5.0)  # however busy the machine is
    store = {"store": redis_url}
    async with gateway_of(cached(cache=store), generalist=answer("fine")) as gateway:
        assert await uses(gateway, {}) == ["miss"]
    changed = {**changes, "cache": {**store, **changes.get("cache", {})}}
    async with gateway_of(cached(**changed), generalist=answer("other"), painter=answer("other")) as gateway:
        assert await uses(gateway, {}) == ["hit" if shared else "miss"]


async def test_an_answer_with_passages_is_not_stored_and_one_without_is() -> None:
    scripted = ScriptedRetrieval(passage("The tower was built in 1889."), gate=gate_of(3.0))
    async with gateway_of(cached(), retrieval=scripted.retrieval, generalist=answer("In 1889.")) as gateway:
        assert await uses(gateway, {}, {}) == ["miss", "miss"]
        assert [record.retrieval for record in gateway.records] == ["used", "used"]
        assert await uses(gateway, *[{"headers": {"x-coe-retrieval": "off"}}] * 2) == ["miss", "hit"]
    scripted = ScriptedRetrieval(passage("The tower was built in 1889."), gate=gate_of(-9.0))
    async with gateway_of(cached(), retrieval=scripted.retrieval, generalist=answer("In 1889.")) as gateway:
        assert await uses(gateway, {}, {}) == ["miss", "hit"]


RECIPES = [{"name": "careful", "cascade": [["coder", "painter"], "generalist"]}]


async def test_a_recipes_answer_is_cached_with_its_member_and_teaches_its_arm() -> None:
    declared = cached(recipes=RECIPES)
    async with gateway_of(declared, coder=answer("7"), painter=answer("7")) as gateway:
        first, second = await send_chat(gateway, model="careful"), await send_chat(gateway, model="careful")
        assert first.body == second.body
        assert (first.headers["x-coe-expert"], second.headers["x-coe-expert"]) == ("coder", "coder")
        assert second.headers["x-coe-cache"] == "hit"
        assert "x-coe-calls" not in second.headers
        miss, hit = gateway.records
        assert (miss.expert, hit.expert) == ("careful", "careful")
        assert (hit.steps, hit.recipe, hit.cost) == ((), "", 0.0)


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_answer_of_a_fuse_is_stored_unless_one_of_its_panel_failed(streamed: bool) -> None:
    declared = cached(recipes=[{"name": "council", "fuse": ["coder", "painter"], "by": "generalist"}])
    body = {"model": "council", "stream": streamed}
    written = stream("9") if streamed else answer("9")
    async with gateway_of(declared, coder=answer("7"), painter=answer("8"), generalist=written) as gateway:
        assert await uses(gateway, body, body) == ["miss", "hit"]
    down = ExpertUnavailable("down", expert="painter")
    async with gateway_of(declared, coder=answer("7"), painter=down, generalist=written) as gateway:
        assert await uses(gateway, body, body) == ["miss", "miss"]
        assert gateway.records[0].recipe_stop == "last_step"


async def test_an_observer_that_fails_does_not_keep_the_others_from_the_request() -> None:
    def failing(trace: object) -> None:
        raise RuntimeError("a defect")

    seen: list[object] = []
    async with gateway_of(cached(), observers=(failing, seen.append), generalist=answer("fine")) as gateway:
        assert await uses(gateway, {}, {}) == ["miss", "hit"]
    assert len(seen) == 2


async def test_metrics_count_hits_and_misses_and_no_tokens_of_hits() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        await uses(gateway, {}, {}, {}, {"temperature": 1})
        page = (await gateway.post("/metrics", method="GET", headers={})).body.decode()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        assert float(lines['coe_cache_requests_total{result="hit"}']) == 2
        assert float(lines['coe_cache_requests_total{result="miss"}']) == 1
        assert float(lines['coe_tokens_total{expert="generalist",kind="output"}']) == 10  # of two calls
        assert float(lines['coe_first_byte_seconds_count{expert="generalist"}']) == 2


async def test_feedback_on_a_hit_teaches_the_expert_that_wrote_the_answer_and_no_off_policy_estimate() -> None:
    async with gateway_of(cached(), generalist=answer("fine")) as gateway:
        await send_chat(gateway)
        await send_chat(gateway)
        liked = [
            Feedback(f"e{number}", record.request_id, record.time, "thumb", 1)
            for number, record in enumerate(gateway.records)
        ]
        names = {
            "categories": ("code", "art", "general"),
            "experts": gateway.services.snapshot.registry.expert_names,
        }
        experience = load_experience(frame_of([gateway.records], [liked]), **names).experience
        assert experience.rated.tolist() == [True, True]
        assert experience.chosen.tolist() == [names["experts"].index("generalist")] * 2
        assert np.array_equal(experience.posterior[0], experience.posterior[1])
        assert experience.usable_off_policy.tolist() == [True, False]
