"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.fleet.fake_fleet import FAKE_SERVER

VLLM = """#!{python}
import os, sys
flags = dict(zip(sys.argv, sys.argv[1:]))
host, port, name = (flags[word] for word in ("--host", "--port", "--served-model-name"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
mode = open({mode}).read()
sys.path.insert(0, {tests})
import fake_server
fake_server.main(int(port), mode, fake_server.Path({pids}), host)
"""


class Nodes:
    """A Ray cluster on this machine. `join` adds a node; `lose` removes one, as a power cut would unless `gracefully`;
    `set` chooses how servers behave that start from now on (fake_server.py). `cluster` ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cluster: Any = None

    def install(self) -> Path:
        """A folder with a command `vllm` that is a fake server."""
        self.set("ok")
        command = self.folder / "bin" / "vllm"
        command.parent.mkdir()
        words = {"mode": self.folder / "mode", "pids": self.folder / "vllm.pids", "tests": FAKE_SERVER.parent}
        command.write_text(
            VLLM.format(python=sys.executable, **{name: repr(str(path)) for name, path in words.items()})
        )
        command.chmod(0o755)
        return command.parent

    def set(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def join(self, **resources: Any) -> Any:
        args = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20, **resources}
        if self._cluster is None:
            quick = {"health_check_period_ms": 500}
            self._cluster = Cluster(initialize_head=True, head_node_args={**args, "_system_config": quick})
            return self._cluster.head_node
        return self._cluster.add_node(**args)

    def lose(self, node: Any, *, gracefully: bool = False) -> None:
        self._cluster.remove_node(node, allow_graceful=gracefully)

    def end(self) -> None:
        if self._cluster is not None:
            self._cluster.shutdown()


@contextmanager
def cluster(folder: Path, *, bin_folder: Path | None = None) -> Iterator[Nodes]:
    """A cluster of one node; RAY_ADDRESS refers to it. Its nodes find vLLM in `bin_folder`, or else a fake one."""
    with pytest.MonkeyPatch.context() as patch:
        nodes = Nodes(folder)
        patch.setenv("PATH", f"{bin_folder or nodes.install()}:{os.environ['PATH']}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        try:
            nodes.join()
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield nodes
        finally:
            nodes.end()
            gc.collect()  # or Ray's processes would be missed in another test
            left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
            psutil.wait_procs(left, 10)
