"""Gateways behind a real nginx with deploy/nginx/coe.conf: what one caller provokes ejects no gateway and runs once."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.access.samples import key_of
from tests.gateway import nginx
from tests.gateway.served import Served, chat, serving
from tests.gateway.two_keys import CHAT

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(nginx.NGINX is None, reason=nginx.MISSING)]

KEYS = [key_of(name).model_dump(mode="json") for name in ("alice", "mallory")]
KEYS.append(key_of("operator", scopes=("admin",)).model_dump(mode="json"))
PROVOKED = ("status-500", "torn", "silent", "text-noise", "truncated", "stalls")
"""Experts that fail, each in its way."""
METRICS = "/metrics /metrics/ //metrics /metrics// /%6detrics /metrics%2f /metrics; /metrics;x /metrics?x /metrics%3fx"
METRICS += " /x/../metrics /x/../metrics/ /metrics/. /metrics/.. /metrics/../metrics/ /metrics%00 /METRICS /metrics%20"
METRICS += " /v1/../metrics/ /./metrics/ /%256detrics /metrics%252f http://localhost/metrics/ /metrics/#x /metrics\\"


@dataclass
class Fleet:
    """Two gateways, and nginx before them at `url`."""

    url: str
    gateways: list[Served]
    client: aiohttp.ClientSession

    async def send(self, key: str, model: str = "good", *, stream: bool = False, seconds: float = 60) -> int:
        """Send a request pinned to an expert, read the answer, and return its status; 0 if it breaks off."""
        headers = {"x-api-key": key, "x-coe-timeout": str(seconds)}
        body = chat(model, stream=stream)
        async with self.client.post(self.url + CHAT, json=body, headers=headers) as response:
            try:
                await response.read()
            except aiohttp.ClientPayloadError:
                return 0
            return response.status


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "nginx"):
            (folder / name).mkdir()
        both = (serving(folder / name, access={"keys": KEYS}) for name in ("one", "two"))
        gateways = list(await asyncio.gather(*map(stack.enter_async_context, both)))
        url = await stack.enter_async_context(nginx.balancing(folder / "nginx", [one.port for one in gateways]))
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Fleet(url, gateways, client)


async def test_a_tenant_that_provokes_failures_disturbs_no_other_and_each_request_runs_once(tmp_path: Path) -> None:
    async with fleet(tmp_path) as service:
        attack = [
            service.send("mallory", model, stream=number % 2 == 0, seconds=0.5)
            for number in range(10)
            for model in PROVOKED
        ]
        failed = asyncio.gather(*attack)
        answered = Counter([await service.send("alice") for _ in range(100)])
        statuses = Counter(await failed)
        asked = Counter(body["model"] for gateway in service.gateways for body in gateway.upstream.seen)
    assert answered == {200: 100}
    assert statuses.keys() - {200}
    assert asked["good"] == 100
    assert asked <= Counter({"good": 100} | {model.replace("-", ":"): 10 for model in PROVOKED})


async def test_requests_pass_no_page_of_metrics_however_its_path_is_written(tmp_path: Path) -> None:
    async with fleet(tmp_path) as service:
        gateway = service.gateways[0].port
        nginx_port = int(service.url.rpartition(":")[2])
        directly = {path for path in METRICS.split() if "coe_requests_total" in await get(gateway, path)}
        behind = {path: await get(nginx_port, path) for path in METRICS.split()}
        known = await get(nginx_port, "/v1/models")
    assert directly >= {"/metrics", "/metrics/", "/%6detrics", "/metrics%2f"}
    assert {path for path, answer in behind.items() if "coe_requests_total" in answer} == set()
    assert " 200 OK" in known


async def get(port: int, path: str) -> str:
    """Return head and body of the answer to a GET of the administrator, its target sent as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (f"GET {path} HTTP/1.1", "host: localhost", "x-api-key: operator", "connection: close", "", "")
    writer.write("\r\n".join(head).encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_a_gateway_that_drains_loses_no_request(tmp_path: Path) -> None:
    async with fleet(tmp_path) as service:
        statuses, ended = Counter[int](), asyncio.Event()

        async def load(number: int) -> None:
            while not ended.is_set():
                statuses[await service.send("alice", "good", stream=number % 2 == 0)] += 1

        clients = [asyncio.create_task(load(number)) for number in range(12)]
        drained, other = service.gateways
        await reaches(statuses, 100)
        drained.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(drained.process.wait(), 60) == 0
        await reaches(statuses, statuses.total() + 100)
        await drained.start()
        await reaches(statuses, statuses.total() + 100)
        other.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(other.process.wait(), 60) == 0
        await reaches(statuses, statuses.total() + 100)
        ended.set()
        await asyncio.gather(*clients)
    assert set(statuses) == {200}, statuses


async def reaches(statuses: Counter[int], count: int) -> None:
    async with asyncio.timeout(60):
        while statuses.total() < count:
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------- gateways that fail in every way


Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Failure = Callable[[Reader, Writer], Awaitable[None]]
"""What a gateway does with a request; then it closes the connection."""
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def close(_: Reader, _writer: Writer) -> None:
    """Close the connection without an answer, as a gateway whose worker is killed."""


async def cut_off(_: Reader, writer: Writer) -> None:
    writer.write(OK.replace(b": 2", b": 200"))
    await writer.drain()


async def send_large_head(_: Reader, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2**17 + b"\r\ncontent-length: 2\r\n\r\nok")
    await writer.drain()


async def answer_503(_: Reader, writer: Writer) -> None:
    writer.write(OK.replace(b"200 OK", b"503 Service Unavailable"))
    await writer.drain()


async def stay_silent(reader: Reader, _: Writer) -> None:
    await reader.read()


@asynccontextmanager
async def gateway_that(fails: Failure) -> AsyncIterator[tuple[int, Counter[str]]]:
    """A server that fails at /fail and answers any other path: its port, and the requests that it got by path."""
    received = Counter[str]()

    async def serve(reader: Reader, writer: Writer) -> None:
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
                received[path] += 1
                if path == "/fail":
                    await fails(reader, writer)
                    break
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], received


async def post(url: str) -> int:
    """Return the status of the answer to a POST; 0 if it breaks off."""
    async with aiohttp.ClientSession() as client, client.post(url) as response:
        try:
            await response.read()
        except aiohttp.ClientPayloadError:
            return 0
        return response.status


@pytest.mark.parametrize("fails", [close, cut_off, send_large_head, answer_503, stay_silent])
async def test_a_gateway_that_fails_one_request_gets_the_next_and_the_failed_one_is_not_repeated(
    tmp_path: Path, fails: Failure
) -> None:
    async with (
        gateway_that(fails) as (one, received_by_one),
        gateway_that(fails) as (two, received_by_two),
        nginx.balancing(tmp_path, [one, two], read_timeout="200ms") as url,
    ):
        failed = {await post(f"{url}/fail") for _ in range(4)}
        answered = {await post(f"{url}/good") for _ in range(10)}
    assert failed <= {0, 502, 503, 504}
    assert answered == {200}
    assert received_by_one["/fail"] + received_by_two["/fail"] == 4
    assert received_by_one["/good"]
    assert received_by_two["/good"]


@pytest.mark.parametrize("responds", [True, False], ids=["refuses", "does not respond"])
async def test_while_one_gateway_is_dead_the_other_answers_every_request(tmp_path: Path, responds: bool) -> None:
    with closed_or_silent_port(responds=responds) as dead:
        async with gateway_that(close) as (alive, received), nginx.balancing(tmp_path, [dead, alive]) as url:
            answered = [await post(f"{url}/good") for _ in range(5)]
    assert answered == [200] * 5
    assert received["/good"] == 5


@contextmanager
def closed_or_silent_port(*, responds: bool) -> Iterator[int]:
    """A port that refuses connections, or one whose full queue leaves them without a response, as a dead machine."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        if responds:
            listener.close()
        for _ in range(0 if responds else 4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address[1]
