"""The real app over real expert servers, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.registry import Registry
from tests.fakes import Gateway, gateway_of, registry_of


def registry_over(addresses: Mapping[str, str | list[str]], **changes: Any) -> Registry:
    """Experts at these addresses by name: `code` to coder, `art` to painter, the rest to the last one."""
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_urls": [at] if isinstance(at, str) else at}
        for name, at in addresses.items()
    ]
    assignment = {"code": "coder", "art": "painter"}
    known = {category: name for category, name in assignment.items() if name in addresses}
    return registry_of(experts=experts, assignment={"general": experts[-1]["name"], **known}, **changes)


@asynccontextmanager
async def gateway_over(addresses: Mapping[str, str | list[str]], **changes: Any) -> AsyncIterator[Gateway]:
    """The gateway, its experts being real ones at these addresses."""
    registry = registry_over(addresses, **changes)
    async with (
        Client() as session,
        gateway_of(registry, real_experts=build_experts(registry, {}, session=session)) as gateway,
    ):
        yield gateway
