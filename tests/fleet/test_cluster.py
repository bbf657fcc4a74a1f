"""Expert servers on a Ray cluster: spread over nodes, restarted in place, moved off a dead node, ended with the
fleet."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import ray

from coe.errors import ClusterError, FleetError
from coe.fleet import ray_servers
from coe.fleet.ray_servers import ClusterFleet, ServerRequest, ray_cluster, server_requests
from coe.fleet.specs import free_port
from coe.registry import ExpertSpec
from tests.fleet.cluster import Nodes, cluster
from tests.fleet.fake_fleet import DEADLINE, QUICK, Fakes
from tests.fleet.fake_server import FAMILY_SIZE
from tests.vllm.service import Service
from tests.waiting import LONG_TIME, expire_when, wait_until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings(
        "ignore:subprocess .* is still running:ResourceWarning"
    ),  # Ray does not wait for its own
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
BASE = ExpertSpec(name="base", model="org/model", runtime="vllm", replicas=2)
ONE = BASE.model_copy(update={"replicas": 1})

PARENT = """
import asyncio, sys
from pathlib import Path
from coe.fleet.ray_servers import ClusterFleet, ray_cluster
from tests.fleet.fake_fleet import QUICK
from tests.fleet.test_cluster import ONE, requests_for

async def main(ray):
    async with ClusterFleet(requests_for(Path(sys.argv[1]), ONE), ray=ray, report=lambda line: None, timeouts=QUICK):
        print("ready", flush=True)
        await asyncio.sleep(600)

with ray_cluster() as ray:
    asyncio.run(main(ray))
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes of one CPU each."""
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        nodes.join()
        yield nodes


@pytest.fixture
def fakes(nodes: Nodes) -> Iterator[Fakes]:
    """The processes of the servers on all nodes; none may be left after a test."""
    nodes.set("ok")
    fakes = Fakes(nodes.folder)
    yield fakes
    left = fakes.alive()
    for pid in left:
        psutil.Process(pid).kill()
    (nodes.folder / "vllm.pids").unlink(missing_ok=True)
    assert not left


def requests_for(folder: Path, *experts: ExpertSpec) -> list[ServerRequest]:
    return list(
        server_requests(
            experts,
            base_folder=folder,
            models=folder / "models",
            logs=folder / "logs",
            cluster_has_gpus=False,
        )
    )


@asynccontextmanager
async def fleet_of(
    fakes: Fakes, *experts: ExpertSpec, placement_timeout: float = DEADLINE
) -> AsyncIterator[ClusterFleet]:
    wanted = requests_for(fakes.folder, *experts)
    with ray_cluster() as connected:
        async with ClusterFleet(
            wanted, ray=connected, report=fakes.report, timeouts=QUICK, placement_timeout=placement_timeout
        ) as fleet:
            yield fleet
        await wait_until(lambda: actors() == [], pause=0.1)  # Ray ends them in the background


def actors() -> list[str]:
    """The states of the actors that are not dead."""
    from ray._private.state import actors

    return [actor["State"] for actor in actors().values() if actor["State"] != "DEAD"]


async def test_replicas_are_spread_over_the_nodes_and_one_that_dies_is_restarted_in_its_place(fakes: Fakes) -> None:
    async with fleet_of(fakes, BASE) as fleet:
        before = fleet.endpoints()
        alive = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
        assert len({actor["Address"]["NodeID"] for actor in alive}) == len(fakes.alive()) == 2
        psutil.Process(fakes.alive()[0]).kill()
        await fakes.wait_for_line("was killed by SIGKILL")
        await fakes.wait_for_line("is ready", times=3)
        assert fleet.endpoints() == before
        assert any(line.startswith("node ") and "restarting in" in line for line in fakes.lines)


async def test_missing_resources_are_reported_in_time(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_servers, "PLACEMENT_NOTICE", 0.0)
    expire_when(monkeypatch, lambda: actors().count("ALIVE") == 2 and not ray.available_resources().get("CPU"))
    three = BASE.model_copy(update={"replicas": 3})
    with pytest.raises(FleetError) as caught:
        async with fleet_of(fakes, three, placement_timeout=LONG_TIME):
            pytest.fail("there are two nodes of one CPU")
    assert "found no room within 100000 s: it needs 1 CPU; the 2 nodes of the cluster have 2 CPU" in str(caught.value)
    assert "(missing: 1 CPU); add nodes, or declare fewer replicas" in str(caught.value)
    assert fakes.alive() == []


async def test_killing_the_parent_leaves_no_actor_and_no_server_process(nodes: Nodes, fakes: Fakes) -> None:
    nodes.set("family")
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(fakes.folder), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        assert await parent.stdout.readline() == b"ready\n"
    processes = [psutil.Process(pid) for pid in fakes.alive()]
    assert len(processes) == FAMILY_SIZE
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    assert psutil.wait_procs(processes, DEADLINE)[1] == []
    with ray_cluster():
        async with asyncio.timeout(DEADLINE):
            while actors():
                await asyncio.sleep(0.1)


def test_the_gateway_of_coe_up_follows_a_replica_to_another_node_and_everything_stops_at_the_end(
    nodes: Nodes, fakes: Fakes, tmp_path: Path
) -> None:
    doomed = nodes.join()
    three = {"name": "base", "model": "org/model", "runtime": "vllm", "replicas": 3}
    with Service(tmp_path, bin_folder=nodes.folder / "bin") as service:
        service.declare(three)
        service.start(executor="ray")
        before = service.servers
        assert len(before) == 3
        nodes.lose(doomed)
        service.wait_for_line("is lost with its place on node")
        new = nodes.join()
        service.wait_for_line("serves at", times=4)
        assert len(set(service.servers) - set(before)) == 1
        for number in range(6):  # by conversation they go to all of them
            answer = service.send_chat("base", f"Hello {number}")
            assert (answer.status_code, answer.headers["x-coe-attempts"]) == (200, "1")
    nodes.lose(new, gracefully=True)
    assert "stopped" in service.output
    assert fakes.alive() == []


def test_resources_follow_from_the_declaration(tmp_path: Path) -> None:
    spread = BASE.model_copy(update={"name": "spread", "model": "org/other", "options": {"tensor-parallel-size": 4}})
    named = BASE.model_copy(update={"name": "named", "model": "org/third", "gpus": (2, 5), "memory_gb": 40.0})
    rented = BASE.model_copy(update={"name": "rented", "runtime": "external", "replicas": 1})
    plain = BASE.model_copy(update={"memory_gb": 3.0})
    places = {"base_folder": tmp_path, "models": tmp_path, "logs": tmp_path}
    found = list(server_requests([plain, spread, named, rented], **places, cluster_has_gpus=False))
    assert [one.name for one in found] == ["base-1", "base-2", "spread-1", "spread-2", "named-1", "named-2"]
    assert [one.resources for one in found[::2]] == [
        {"CPU": 1, "memory": 3 * 2**30},
        {"CPU": 1, "GPU": 4},
        {"CPU": 1, "GPU": 2},
    ]
    assert next(server_requests([plain], **places, cluster_has_gpus=True)).resources["GPU"] == 1


def test_an_unreachable_cluster_is_reported_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match=f"nothing answers at RAY_ADDRESS={address} .*Unset it"), ray_cluster():
            pytest.fail("there is none")


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install '.*\[ray\]'"), ray_cluster():
        pytest.fail("it is not installed")
