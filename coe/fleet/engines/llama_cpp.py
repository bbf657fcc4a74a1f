"""`llama-server` of llama.cpp, for GGUF files on a CPU, or on a GPU that its build supports.

Its servers can only be stopped. Its router mode also ends a process to unload a model, and `--sleep-idle-seconds`
sleeps by its own timer, which residency cannot control.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.engines.engine import (
    ExpertProblems,
    InferenceEngine,
    ServerPlace,
    gpu_environment,
    spare_threads,
    to_argv,
)
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.sections import Flag


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
