"""`llama-server` of llama.cpp, for GGUF files on a CPU, or on a GPU that its build supports.

Its servers can only be stopped. Its router mode also ends a process to unload a model, and `--sleep-idle-seconds`
sleeps by its own timer, which residency cannot control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.engines.engine import InferenceEngine, ModelFolders, gpu_environment, spare_threads, to_argv
from coe.fleet.specs import ListenAddress, ServerSpec
from coe.registry import ExpertSpec
from coe.registry.sections import Flag

_SLEEP_FLAG = "sleep-idle-seconds"


class LlamaCpp(InferenceEngine):
    """`llama-server`, which splits a model over the GPUs that it sees, and downloads a hub model before it listens."""

    command = "llama-server"
    install = "`brew install llama.cpp` (or a release of github.com/ggml-org/llama.cpp)"
    reserved_flags = frozenset({"host", "port", "alias", "model", "hf-repo", "offline", "models-dir", "models-preset"})

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """Enables the metrics page, which shows the queue, and disables the web page. By default one thread runs on
        each physical core, and one core stays free for other processes."""
        threads = min(spare_threads(), psutil.cpu_count(logical=False) or spare_threads())
        defaults: dict[str, Flag] = {"metrics": True, "ui": False, "threads": threads}
        declared = super().flags(expert)
        if declared.get("metrics") is False:  # there is no flag for it
            del declared["metrics"], defaults["metrics"]
        return defaults | declared

    def problems(
        self, expert: ExpertSpec, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        try:
            weights.locate_gguf(expert.model, base_folder=base_folder)
        except FleetError as error:
            yield "model", str(error)
        if _SLEEP_FLAG in options:
            yield "options", f"{_SLEEP_FLAG} does not work, since health checks keep it awake; declare `residency`"

    def server_spec(
        self, first: ExpertSpec, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        file = weights.locate_gguf(first.model, base_folder=models.base_folder)
        if file is not None:
            weights.check_packaged(first.model, file)
        source = ("--hf-repo", first.model) if file is None else ("--model", str(file), "--offline")
        listen = ("--alias", first.name, "--host", address.host, "--port", str(address.port))
        return self.spec(
            first,
            address,
            argv=(self.locate(first, address), *source, *listen, *to_argv(self.flags(first))),
            env=gpu_environment(first.gpus),
            model=first.name,
        )
