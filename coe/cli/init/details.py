"""Requests the capabilities of selected models from Ollama, whose list of models has names only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from coe.cli.init.selection import Candidate
from coe.core import Capability
from coe.experts.http.client import Client, Target

TIMEOUT = 5.0
"""Seconds for the description of one model."""
CONCURRENCY = 8
MAX_BYTES = 4 * 2**20
_CAPABILITIES: Mapping[str, Capability] = {"tools": "tools", "vision": "images"}
_EVERY_MODEL: frozenset[Capability] = frozenset({"json_schema"})
"""Ollama constrains the output of all models."""


async def describe(chosen: Sequence[Candidate]) -> list[Candidate]:
    """Add the capabilities of models that Ollama serves. Others, and those that it does not describe, stay as they are.

    Models that answer no conversations are left out.
    """
    limit = asyncio.Semaphore(CONCURRENCY)

    async def described(one: Candidate) -> Candidate | None:
        if one.listed.server != "ollama":
            return one
        async with limit:
            reported = await _reported(one, session)
        if reported is None:
            return one
        if "completion" not in reported:
            return None
        found = _EVERY_MODEL | {_CAPABILITIES[name] for name in _CAPABILITIES if name in reported}
        return replace(one, listed=replace(one.listed, capabilities=found))

    async with Client() as session:
        return [one for one in await asyncio.gather(*map(described, chosen)) if one is not None]


async def _reported(one: Candidate, session: Client) -> list[Any] | None:
    """Return Ollama's own words for what a model can do; None if it does not answer."""
    url = f"{one.base_url.removesuffix('/v1')}/api/show"
    body = orjson.dumps({"model": one.listed.id})
    try:
        async with asyncio.timeout(TIMEOUT):
            response = await session.send(Target(url, {"content-type": "application/json"}), body)
            try:
                page = await response.read(MAX_BYTES) if response.status == 200 else b""
            finally:
                response.close()
        reported = orjson.loads(page)["capabilities"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return reported if isinstance(reported, list) else None
