"""Concurrent requests take the same step in succession, and a request that is alone does not yield."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from time import perf_counter

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from coe.errors import DeadlineExceeded, RequestError
from coe.experts.replicas import Replica, ReplicatedExpert
from gateway.cohort import Cohort
from gateway.request.body import ClientLeftError
from gateway.request.trace import Trace
from tests.fakes import ScriptedExpert, gateway_of, registry_of
from tests.gateway.raw_http import RunningServer, served
from tests.gateway.ready import another_ready
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

BODY = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHAT = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
STEPS = ("classify", "assign", "call", "relay", "record")


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


class Steps:
    """An observer that lists the steps of all requests in the order in which they began."""

    def __init__(self) -> None:
        self._begun: list[tuple[float, str]] = []

    def observe(self, trace: Trace) -> None:
        self._begun += [(began, name) for name, began in trace.began.items() if name in STEPS]
        self._begun.append((perf_counter(), "record"))

    @property
    def in_order(self) -> list[str]:
        return [name for _, name in sorted(self._begun, key=itemgetter(0))]


@contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def send_together(clients: list[socket.socket], server: RunningServer) -> None:
    """Send a chat of each client without a pause, so that the event loop reads all of them at once."""
    for client in clients:
        client.sendall(CHAT)
    sockets = [one.transport.get_extra_info("socket").fileno() for one in server.connections]
    while len(select.select(sockets, [], [], 60)[0]) < len(clients):  # the kernel may deliver them a moment later
        pass


async def exchange(client: socket.socket) -> None:
    """Send a chat and wait for its response."""
    client.setblocking(True)
    client.sendall(CHAT)
    await answered(client)


async def answered(client: socket.socket) -> None:
    """Wait for the response."""
    client.setblocking(False)
    async with asyncio.timeout(60):
        assert (await asyncio.get_running_loop().sock_recv(client, 2**16)).startswith(b"HTTP/1.1 200")


async def test_requests_that_arrive_together_take_each_step_in_succession() -> None:
    steps = Steps()
    async with gateway_of(observers=[steps.observe]) as gateway:
        cohort = gateway.serving_state.cohort
        async with served(gateway.app, cohort=cohort) as (server, port):
            with connected(port, 3) as clients:
                await wait_until(lambda: len(server.connections) == 3)
                send_together(clients, server)
                for client in clients:
                    await answered(client)
    called = ["call", "relay"]  # the scripted expert answers at once
    assert steps.in_order == 3 * ["classify"] + 3 * ["assign"] + 3 * called + 3 * ["record"]
    assert cohort.ready == 0


async def test_each_of_the_requests_that_arrive_together_sees_the_load_of_the_decisions_before_it() -> None:
    experts = [one.model_dump(exclude_none=True, exclude_unset=True) for one in registry_of().experts]
    experts[0]["concurrent_requests"] = 2
    registry = registry_of(experts=experts, policy={"max_quality_loss": 1.0})
    server = ScriptedExpert("coder", asyncio.Event())
    coder = ReplicatedExpert(registry.experts[0], replicas=[Replica(server)])
    async with (
        gateway_of(registry, real_experts={"coder": coder}) as gateway,
        served(gateway.app, cohort=gateway.serving_state.cohort) as (http, port),
    ):
        with connected(port, 4) as clients:
            await wait_until(lambda: len(http.connections) == 4)
            send_together(clients, http)
            await wait_until(lambda: len(gateway.records) == 2)  # those of which the expert does not wait
            assert (coder.pending, coder.health.load, len(server.calls)) == (0, 1.0, 2)
            server.script.set()
            for client in clients:
                await answered(client)
            await wait_until(lambda: len(gateway.records) == 4)
    assert [record.reason for record in gateway.records] == ["spilled", "spilled", "routed", "routed"]


async def test_a_request_that_is_alone_never_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[int] = []
    yield_to_others = Cohort.yield_to_others

    def noted(cohort: Cohort) -> Awaitable[None]:
        ready.append(cohort.ready)
        return yield_to_others(cohort)

    monkeypatch.setattr(Cohort, "yield_to_others", noted)
    async with gateway_of() as gateway, served(gateway.app, cohort=gateway.serving_state.cohort) as (_, port):
        with connected(port, 1) as (client,):
            for _ in range(3):
                await exchange(client)
    assert ready == 3 * 4 * [0]


def test_only_a_ready_request_makes_another_one_yield() -> None:
    cohort = Cohort()

    async def before_a_step() -> None:
        await cohort.yield_to_others()

    with pytest.raises(StopIteration):
        before_a_step().send(None)
    cohort.ready = 1
    waiting = before_a_step()
    waiting.send(None)
    assert cohort.ready == 2
    with pytest.raises(StopIteration):
        waiting.send(None)
    assert cohort.ready == 1


@pytest.mark.parametrize("turns", range(1, 4))
@pytest.mark.parametrize("reason", [ClientLeftError(), DeadlineExceeded("too late")])
async def test_a_request_may_be_cancelled_while_it_yields(turns: int, reason: RequestError | ClientLeftError) -> None:
    async with gateway_of() as gateway:
        with another_ready(gateway) as cohort:
            task = asyncio.ensure_future(gateway.chat("code"))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert cohort.ready == 2
            (active,) = gateway.serving_state.admission.active
            active.cancel(reason)
            await task
            assert cohort.ready == 1
    outcome = "aborted" if isinstance(reason, ClientLeftError) else reason.code
    assert [record.outcome for record in gateway.records] == [outcome]
    assert gateway.experts["coder"].calls == []


async def test_the_duration_of_a_request_ends_with_its_answer_and_not_with_its_record() -> None:
    traces: list[Trace] = []
    async with gateway_of(observers=[traces.append]) as gateway:
        with another_ready(gateway):
            await gateway.chat("code")
    (trace,) = traces
    assert trace.elapsed_ms() == trace.ended_ms("relay")


async def test_what_a_client_sends_after_its_response_finds_the_record() -> None:
    """The record waits for the other requests that are ready, but not for what arrives later."""
    records: list[int] = []
    async with gateway_of() as gateway:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            records.append(len(gateway.records))
            await gateway.app(scope, receive, send)

        async with served(app, cohort=gateway.serving_state.cohort) as (_, port):
            with another_ready(gateway), connected(port, 1) as (client,):
                for _ in range(3):
                    await exchange(client)
                await wait_until(lambda: len(gateway.records) == 3)
    assert records == [0, 1, 2]
