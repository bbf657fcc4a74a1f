"""The start of a worker process: the check of the experts, also by `coe up`, and the limits of its libraries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from coe.settings import Settings
from gateway.main import open_services
from tests.experts.fault_servers import answering, closed_port, servers
from tests.gateway import words_server
from tests.gateway.gateway_over import registry_over

pytestmark = pytest.mark.anyio


def settings_in(folder: Path, **environ: str) -> Settings:
    return Settings.read(environ, config=folder / "experts.yaml")


async def lines_until(caplog: pytest.LogCaptureFixture, end: str) -> list[str]:
    async with asyncio.timeout(60):
        while not any(end in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.01)
    return [record.getMessage() for record in caplog.records if record.name == "coe.experts.live_check"]


@asynccontextmanager
async def starting(folder: Path) -> AsyncIterator[None]:
    """Start a gateway over one server that answers and a port at which none does."""
    async with servers((answering,)) as (good,):
        registry = registry_over({"coder": f"{closed_port()}/v1", "generalist": f"{good}/v1"})
        (folder / "experts.yaml").write_bytes(orjson.dumps(registry.model_dump(mode="json", exclude_none=True)))
        async with open_services(settings_in(folder), read=words_server.read, check=True):
            yield


async def test_a_gateway_that_starts_logs_which_experts_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="coe.experts")
    async with starting(tmp_path):
        bad, last = await lines_until(caplog, "expert servers answer")
    assert bad.startswith("check at start: expert coder at ")
    assert "connection_refused" in bad
    assert last == "check at start: 1 of 2 expert servers answer"
