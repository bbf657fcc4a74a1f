"""Health checks of replicas, against real pages."""

from collections.abc import AsyncIterator

import anyio
import pytest

from coe.experts import Replica, ReplicatedExpert, reading_queues
from coe.experts.queues import SLOW_CHECK_ROUNDS, HealthChecks, queue_length
from coe.experts.http.client import Client
from coe.experts.outcomes import MAX_FAILURES
from coe.registry import ExpertSpec
from coe.settings import Endpoint
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


def trip(replica: Replica) -> None:
    for _ in range(MAX_FAILURES):
        replica.breaker.failed(replica.breaker.begin())


def test_the_queues_of_all_engines_are_added_up() -> None:
    assert queue_length(PAGE.encode()) == 5
    for name in ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"):
        assert queue_length(f"{name} 4.0\n".encode()) == 4
    assert queue_length(b"") == queue_length(b"vllm:num_requests_waiting 1.2.3\n") == 0


async def test_a_visible_queue_is_read_each_round(server: FaultyServer, session: Client) -> None:
    expert, replica = expert_at(server.url)
    server.metrics = PAGE
    watch = HealthChecks(session)
    await watch.run_round([expert])
    assert (replica.queue_length, expert.health.load) == (5, 1)
    server.metrics = PAGE.replace(" 3.0", " 0.0").replace(" 2.0", " 0.0")
    await watch.run_round([expert])
    assert (replica.queue_length, expert.health.load) == (0, 0)
    assert server.pages == {"/metrics": 2}


@pytest.mark.parametrize("page", ["", "other_metric 1\n"])
async def test_a_server_without_a_visible_queue_is_checked_once(
    server: FaultyServer, session: Client, page: str
) -> None:
    expert, replica = expert_at(server.url)
    server.metrics = page
    watch = HealthChecks(session)
    for _ in range(2 * SLOW_CHECK_ROUNDS):
        await watch.run_round([expert])
    assert server.pages == {"/metrics": 1}
    assert replica.queue_length is None


async def test_the_health_page_of_an_open_replica_is_read_and_its_breaker_keeps_its_cool_down(
    server: FaultyServer, session: Client
) -> None:
    expert, replica = expert_at(server.url)
    trip(replica)
    server.healthy = 503
    watch = HealthChecks(session)
    await watch.run_round([expert])
    assert replica.alive is False
    server.healthy = 200
    for _ in range(SLOW_CHECK_ROUNDS):
        await watch.run_round([expert])
    assert (replica.alive, replica.state) == (True, "open")
    assert server.pages["/health"] == 2


async def test_a_server_without_a_health_page_is_checked_by_its_list_of_models(
    server: FaultyServer, session: Client
) -> None:
    expert, replica = expert_at(server.url)
    trip(replica)
    server.healthy = 404
    await HealthChecks(session).run_round([expert])
    assert server.pages == {"/health": 1, "/v1/models": 1}


async def test_a_dead_server_yields_no_observation_and_no_exception(session: Client) -> None:
    for url in ("http://127.0.0.1:1/v1", "http://a..b/v1"):
        expert, replica = expert_at(url)
        replica.queue_length = 7
        await HealthChecks(session).run_round([expert])
        assert replica.queue_length is None
        trip(replica)
        await HealthChecks(session).run_round([expert])
        assert not expert.health.up


async def test_health_checks_continue_after_an_exception_and_end_with_their_block(
    session: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.experts.queues.ROUND_INTERVAL", 0)
    rounds = 0
    twice = anyio.Event()

    def experts() -> list[ReplicatedExpert]:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise RuntimeError("a bug")
        twice.set()
        return []

    async with reading_queues(experts, session=session):
        await twice.wait()
    ended = rounds
    await anyio.lowlevel.checkpoint()
    assert rounds == ended
    assert "a bug" in caplog.text


async def test_alive_is_set_by_the_first_check_and_updated_after_a_failure(
    server: FaultyServer, session: Client
) -> None:
    there, replica = expert_at(server.url)
    gone, other = expert_at("http://127.0.0.1:1/v1")
    watch = HealthChecks(session)
    assert replica.alive is None
    await watch.run_round([there, gone])
    assert (replica.alive, other.alive) == (True, False)
    trip(replica)
    server.healthy = 500
    for _ in range(SLOW_CHECK_ROUNDS):
        await watch.run_round([there, gone])
    assert replica.alive is False
