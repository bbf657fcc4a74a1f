"""Building experts from the declaration, at start and at a reload."""

from typing import Any

import pytest

from coe.errors import ConfigError
from coe.experts import build_experts, endpoints_of
from coe.experts.http.client import Client
from coe.registry import Registry
from coe.settings import Endpoint
from tests.fakes import registry_of

pytestmark = pytest.mark.anyio
LOCAL = {"name": "generalist", "model": "m", "runtime": "vllm"}


def registry(*experts: dict[str, Any]) -> Registry:
    return registry_of(experts=list(experts), assignment={"general": "generalist"})


async def test_an_unchanged_expert_is_reused_with_its_state() -> None:
    started = {"generalist": (Endpoint("http://h:1/v1", "m"),)}
    far = {"name": "far", "model": "m", "runtime": "external", "base_urls": ["http://a/v1", "http://b/v1"]}
    async with Client() as session:
        first = build_experts(registry(LOCAL, far), started, session=session)
        assert list(first) == ["generalist", "far"]
        assert [replica.address for replica in first["far"].replicas] == ["a", "b"]
        changed = registry(LOCAL, {**far, "system_prompt": "Be kind."})
        second = build_experts(changed, started, session=session, previous=first)
        assert second["generalist"] is first["generalist"]
        assert second["far"] is not first["far"]
        moved = {"generalist": (Endpoint("http://h:2/v1", "m"),)}
        third = build_experts(registry(LOCAL), moved, session=session, previous=second)
        assert list(third) == ["generalist"]
        assert third["generalist"] is not second["generalist"]


def test_a_local_expert_that_is_not_started_is_an_error_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'generalist' runs locally and is not started; use `coe up`"):
        endpoints_of(registry(LOCAL).experts[0], {})


def test_a_providers_default_address_needs_no_endpoint() -> None:
    spec = {"name": "generalist", "model": "anthropic/x", "runtime": "litellm"}
    assert endpoints_of(registry(spec).experts[0], {}) == ()
