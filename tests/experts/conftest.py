"""Fixtures for the tests of experts: a server that behaves as the model name in the request says."""

from collections.abc import AsyncIterator

import pytest

from tests.experts.faulty_server import FaultyServer


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[FaultyServer]:
    server = FaultyServer()
    runner = await server.start()
    yield server
    await runner.cleanup()
