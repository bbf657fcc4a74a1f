"""No library sends usage reports: onnxruntime's are off, and started servers inherit the variables."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import coe
from coe.fleet.server import ServerProcess
from tests.fleet.fake_fleet import Fakes

NETWORK = """
import os, sys
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "network", [value("x")], [value("y")])
network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
import numpy as np
threads = len(os.listdir("/proc/self/task"))
from routers.encoders import open_session
session = open_session(network)
print(session.run(None, {"x": np.ones(1, dtype=np.float32)})[0][0], len(os.listdir("/proc/self/task")) - threads)
"""


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who set none of the variables. A variable of a CI would disable the reports too."""
    removed = {*coe.NO_USAGE_REPORTS, "CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    return inherited | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | variables


def run(code: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_network_runs_without_a_thread_or_a_file_for_usage_reports(tmp_path: Path) -> None:
    assert run(NETWORK, clean_environment(tmp_path)) == "-1.0 0"
    assert list(tmp_path.rglob("*")) == []


def test_a_user_may_set_the_variables(tmp_path: Path) -> None:
    code = "import coe, os; print(os.environ['VLLM_NO_USAGE_STATS'], os.environ['DO_NOT_TRACK'])"
    assert run(code, clean_environment(tmp_path, VLLM_NO_USAGE_STATS="0")) == "0 1"


@pytest.mark.anyio
async def test_started_servers_inherit_the_variables(tmp_path: Path) -> None:
    printing = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"
    spec = replace(Fakes(tmp_path).spec(), argv=(sys.executable, "-c", printing))
    process = ServerProcess(spec, grace=5)
    try:
        async with asyncio.timeout(60):
            while not spec.log.read_text(encoding="utf-8").endswith("}\n"):
                await asyncio.sleep(0.02)
    finally:
        await process.stop()
    environ = json.loads(spec.log.read_text(encoding="utf-8"))
    assert {name: environ.get(name) for name in coe.NO_USAGE_REPORTS} == coe.NO_USAGE_REPORTS
