"""An Ollama that a user has started, with the documented pages of `fake_engine.py`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from coe.fleet.probe import open_probe_session
from coe.fleet.specs import free_port

STAND_IN = Path(__file__).with_name("fake_engine.py")
START_TIMEOUT = 20.0


@asynccontextmanager
async def running_ollama() -> AsyncIterator[str]:
    """The root of the server, which has the models tiny:1b, second:1b and third."""
    host = f"127.0.0.1:{free_port()}"
    command = (sys.executable, str(STAND_IN), "ollama", "serve")
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | {"OLLAMA_HOST": host}, stdout=subprocess.DEVNULL
    )
    try:
        async with open_probe_session() as session, asyncio.timeout(START_TIMEOUT):
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(f"http://{host}/api/version"):
                        break
                await asyncio.sleep(0.05)
        yield f"http://{host}"
    finally:
        process.terminate()
        await process.wait()


async def in_memory(root: str) -> list[str]:
    """The models that the server has loaded."""
    async with open_probe_session() as session, session.get(f"{root}/in-memory") as response:
        found: list[str] = await response.json(content_type=None)
        return found
