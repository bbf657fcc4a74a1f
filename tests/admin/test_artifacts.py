"""`/v1/artifacts`: published versions, promoted after the same checks as by `coe promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.registry import Registry
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned, router_published, settings_in
from tests.fakes import Gateway, Response, gateway_of

pytestmark = pytest.mark.anyio
WHY = "it was better on Monday"


@pytest.fixture
def registry() -> Registry:
    return measured_registry()


@pytest.fixture
def settings(tmp_path: Path, registry: Registry) -> Settings:
    return settings_in(tmp_path / "home", registry)


async def listed(gateway: Gateway) -> dict[str, dict[str, Any]]:
    answer = await gateway.post("/v1/artifacts", method="GET")
    assert answer.status == 200, answer.body
    return {one["kind"]: one for one in answer.json["data"]}


async def move(gateway: Gateway, kind: str, verb: str, **body: Any) -> Response:
    return await gateway.post(f"/v1/artifacts/{kind}/{verb}", orjson.dumps({"why": WHY} | body))


async def test_versions_come_newest_first_with_the_one_in_use_and_those_served(settings: Settings) -> None:
    metrics = {"accuracy": 0.8, "reliability": [{"count": 3}], "corrections": 2}
    old, new = router_published(settings, "old"), router_published(settings, "new", metrics=metrics)
    store = ArtifactStore(settings.artifacts, ROUTER)
    store.promote(old, by="train", why="trained on 3 prompts")
    store.promote(new, by="retrain", why="better by .01")
    async with gateway_of(settings=settings, versions={ROUTER: old}) as gateway:
        found = (await listed(gateway))[ROUTER]
        whole = await gateway.post(f"/v1/artifacts/router/{new}", method="GET")
    assert [one["version"] for one in found["versions"]] == [new, old]
    assert found["versions"][0]["metrics"] == {"accuracy": 0.8, "corrections": 2}
    assert (found["in_use"], found["served"], found["before"]) == (new, {old: 1}, {"version": old})
    assert [(one["version"], one["was"], one["by"]) for one in found["history"]] == [
        (new, old, "retrain"),
        (old, None, "train"),
    ]
    assert whole.json["metrics"] == metrics
    assert whole.json["damaged"] is None


async def test_a_version_is_promoted_and_rolled_back_with_its_reason(settings: Settings, registry: Registry) -> None:
    first, _ = planned(settings, registry)
    second, _ = planned(settings, registry, seed=1)
    store = ArtifactStore(settings.artifacts, "assignment")
    async with gateway_of(settings=settings) as gateway:
        answer = await move(gateway, "assignment", "rollback", expected_version=second)
        assert answer.json == {"object": "move", "kind": "assignment", "was": second, "in_use": first}
        answer = await move(gateway, "assignment", "promote", version=second, expected_version=first)
        assert (answer.status, answer.json["was"], answer.json["in_use"]) == (200, first, second)
    assert [(one.version, one.by, one.why) for one in store.history()[-2:]] == [
        (first, "rollback", WHY),
        (second, "hand", WHY),
    ]


async def test_a_promotion_is_refused_after_another_version_came_into_use(settings: Settings) -> None:
    old, new = router_published(settings, "old"), router_published(settings, "new")
    store = ArtifactStore(settings.artifacts, ROUTER)
    store.promote(new)
    async with gateway_of(settings=settings) as gateway:
        answer = await move(gateway, "router", "promote", version=old, expected_version=old)
    assert answer.status == 409
    assert f"router {new} is in use now, not {old}" in answer.error["message"]
    assert store.in_use() == new


async def test_a_damaged_version_is_shown_as_such_and_refused(settings: Settings) -> None:
    good, bad = router_published(settings, "good"), router_published(settings, "bad")
    store = ArtifactStore(settings.artifacts, ROUTER)
    store.promote(good)
    (settings.artifacts / "router" / bad / "router.json").write_text("{}")
    async with gateway_of(settings=settings) as gateway:
        assert (
            "missing or changed since it was published"
            in (await gateway.post(f"/v1/artifacts/router/{bad}", method="GET")).json["damaged"]
        )
        answer = await move(gateway, "router", "promote", version=bad)
        assert (answer.status, answer.error["code"]) == (409, "artifact_refused")
        assert "router.json: missing or changed since it was published" in answer.error["message"]
        (settings.artifacts / "router" / bad / "manifest.json").write_text("no")
        found = {one["version"]: one["damaged"] for one in (await listed(gateway))["router"]["versions"]}
    assert "manifest.json: cannot be read" in found[bad]
    assert found[good] is None
    assert store.in_use() == good


async def test_a_router_of_other_categories_is_refused_with_the_remedy(settings: Settings) -> None:
    other = router_published(settings, "other", categories=("law", "medicine"))
    async with gateway_of(settings=settings) as gateway:
        answer = await move(gateway, "router", "promote", version=other)
    assert answer.status == 409
    assert "knows none of the categories in experts.yaml" in answer.error["message"]
    assert ArtifactStore(settings.artifacts, ROUTER).in_use() is None


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("nothing/promote", {"version": "a"}, 404),
        ("router/promote", {"version": "a"}, 404),
        ("router/promote", {"version": "../../etc"}, 400),
        ("router/promote", {}, 400),
        ("router/promote", {"version": "a", "why": " "}, 400),
        ("router/promote", {"version": "a", "why": "x" * 501}, 400),
        ("router/rollback", {"version": "a"}, 400),
        ("gate/rollback", {}, 409),
    ],
)
async def test_a_wrong_promotion_or_rollback_is_refused(
    settings: Settings, path: str, body: dict[str, str], status: int
) -> None:
    async with gateway_of(settings=settings) as gateway:
        answer = await gateway.post(f"/v1/artifacts/{path}", orjson.dumps({"why": WHY} | body))
    assert answer.status == status, answer.body


@pytest.mark.parametrize("path", ["router/nothing", "router/..", "nothing/a", "router/.lock"])
async def test_only_published_versions_are_read(settings: Settings, path: str) -> None:
    router_published(settings, "one")
    async with gateway_of(settings=settings) as gateway:
        assert (await gateway.post(f"/v1/artifacts/{path}", method="GET")).status == 404
