"""The queues of replicas, read from real pages of metrics."""

from collections.abc import AsyncIterator

import pytest

from coe.experts import Replica, ReplicatedExpert
from coe.experts.http.client import Client
from coe.experts.replicas import MAX_FAILURES
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from gateway.process.server_polls import queue_length, read_queues
from tests.experts.faulty_server import FaultyServer
from tests.fakes import ScriptedExpert
from tests.waiting import ManualClock

pytestmark = pytest.mark.anyio
PAGE = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
vllm:num_requests_waiting{engine="0",model_name="m{}"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 9.0
"""


@pytest.fixture
async def session(anyio_backend: str) -> AsyncIterator[Client]:
    async with Client() as session:
        yield session


def expert_at(url: str) -> tuple[ReplicatedExpert, Replica]:
    """An expert at an undeclared address, which the loader has not checked."""
    spec = ExpertSpec.model_validate({"name": "clever", "model": "m", "runtime": "external", "base_url": "http://h/v1"})
    clock = ManualClock()
    replica = Replica(ScriptedExpert("clever"), endpoint=Endpoint(url, "m"), clock=clock)
    return ReplicatedExpert(spec, replicas=[replica], clock=clock), replica


def test_the_queues_of_all_engines_are_added_up() -> None:
    assert queue_length(PAGE.encode()) == 5
    for name in ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"):
        assert queue_length(f"{name} 4.0\n".encode()) == 4
    assert queue_length(b"") == 0


async def test_a_visible_queue_is_read_each_round_until_the_breaker_opens(
    server: FaultyServer, session: Client
) -> None:
    expert, replica = expert_at(server.url)
    for page, expected in ((PAGE, (5, 1)), (PAGE.replace(" 3.0", " 0.0").replace(" 2.0", " 0.0"), (0, 0))):
        server.metrics = page
        await read_queues([expert], set(), session=session)
        assert (replica.queue_length, expert.health.load) == expected
    for _ in range(MAX_FAILURES):
        replica.breaker.failed(replica.breaker.begin())
    await read_queues([expert], set(), session=session)
    assert replica.queue_length is None
    assert server.pages == {"/metrics": 2, "/health": 1}
    assert replica.answers
    resting, replica = expert_at("http://127.0.0.1:9/v1")
    replica.breaker.open()
    await read_queues([resting], set(), session=session)
    assert not replica.answers


@pytest.mark.parametrize("page", ["", "other_metric 1\n"])
async def test_a_server_without_a_visible_queue_is_asked_once(server: FaultyServer, session: Client, page: str) -> None:
    expert, replica = expert_at(server.url)
    server.metrics, without_queue = page, set[Replica]()
    for _ in range(3):
        await read_queues([expert], without_queue, session=session)
    assert server.pages == {"/metrics": 1}
    assert replica.queue_length is None
    await read_queues([], without_queue, session=session)
    assert not without_queue  # nothing is remembered of a replica that is gone
