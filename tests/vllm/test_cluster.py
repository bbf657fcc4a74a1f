"""Real vLLM servers on a Ray cluster of two nodes, one replica on each, behind `coe up --executor ray`."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.fleet.cluster import cluster
from tests.vllm.adapter_answers import ADAPTER_ANSWERS
from tests.vllm.conftest import OPTIONS
from tests.vllm.service import Service, text_of

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:subprocess .* is still running:ResourceWarning"
    ),  # Ray does not wait for its own
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def test_replicas_on_two_nodes_serve_every_adapter_and_no_process_is_left(
    model: Path, adapters: Path, python: Path, tmp_path: Path
) -> None:
    base = {"model": str(model), "runtime": "vllm", "options": {**OPTIONS, "max-num-seqs": 2}, "replicas": 2}
    with cluster(tmp_path, bin_folder=python.parent) as nodes, Service(tmp_path, bin_folder=python.parent) as service:
        nodes.join()
        service.declare({"name": "base", **base}, {"name": "pirate", "adapter": str(adapters / "pirate"), **base})
        service.start(executor="ray")
        servers = service.servers
        assert len(servers) == 2
        conversations = iter(range(64))  # a hash of the text and the port selects the replica
        while not all(service.metric("vllm:request_success_total", server=server) > 1 for server in servers):
            answer = service.send_chat("pirate", f"Hello {next(conversations)}")
            assert ADAPTER_ANSWERS["pirate"].startswith(text_of(answer))
            assert answer.headers["x-coe-attempts"] == "1"
        family = service.family()
        assert len(family) >= 2 * 3, "three processes a server"
        service.host.send_signal(signal.SIGKILL)
        service.host.wait()
        assert psutil.wait_procs(family, 60)[1] == []
