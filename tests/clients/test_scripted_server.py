"""The scripted server of the matrix of clients sends an answer in two halves, however busy the machine is."""

from __future__ import annotations

import aiohttp
import pytest

from tests.clients.matrix.script import CODE
from tests.clients.matrix.scripted_server import ScriptedServer
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_the_second_half_of_a_stream_waits_until_the_first_has_arrived() -> None:
    server, asked, read = ScriptedServer(), list[bool](), list[bytes]()

    def has_arrived() -> bool:
        asked.append(True)
        return bool(read)

    body = {"model": "m", "messages": [{"role": "user", "content": CODE}], "stream": True}
    async with server.running(), aiohttp.ClientSession() as client:
        with server.waiting_for(has_arrived):
            async with client.post(f"{server.root}/coder/v1/chat/completions", json=body) as response:
                await wait_until(lambda: len(asked) > 1)
                read.append(await response.content.readany())
                read.append(await response.content.read())
    assert [half.count(b'"content"') > 2 for half in read] == [True, True]
    assert read[1].endswith(b"data: [DONE]\n\n")
