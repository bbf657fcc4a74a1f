"""The check of all experts at the start of a gateway, in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from coe.experts import ReplicatedExpert
from coe.experts.http.client import Client
from coe.experts.live_check import check_experts, log_findings
from coe.registry import Registry

_log = logging.getLogger("gateway")


@asynccontextmanager
async def checking(experts: Iterable[ReplicatedExpert], registry: Registry, *, session: Client) -> AsyncIterator[None]:
    """Request one token from every expert and log the result, while the block serves. Experts that take turns on a
    device are left out: a check would make them switch."""
    local_take_turns = registry.residency is not None
    chosen = [one for one in experts if one.spec.addresses or one.spec.runtime == "litellm" or not local_take_turns]
    task = asyncio.create_task(_check(chosen, session), name="check of the experts")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _check(experts: Iterable[ReplicatedExpert], session: Client) -> None:
    try:
        log_findings(await check_experts(experts, session=session))
    except Exception:
        _log.exception("the check of the experts at the start failed")
