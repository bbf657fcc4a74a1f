"""`llama-server` of llama.cpp, for GGUF files on a CPU, or on a GPU that its build supports.

Its servers can only be stopped. Its router mode also ends a process to unload a model, and `--sleep-idle-seconds`
sleeps by its own timer, which residency cannot control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.engines.engine import ModelFolders, command_of, gpu_environment, spare_threads
from coe.fleet.specs import Flag, ListenAddress, LocalExpert, ServerSpec
from coe.registry.experts import normalized_options

READY_TIMEOUT = 900.0
"""Seconds: `llama-server` downloads a hub model before it listens."""
_SLEEP_FLAG = "sleep-idle-seconds"


class LlamaCpp:
    """The InferenceEngine for `llama-server`."""

    command = "llama-server"
    install = "`coe engine install llama.cpp`"
    reserved_flags = frozenset({"host", "port", "alias", "model", "hf-repo", "offline", "models-dir", "models-preset"})
    start_seconds = (2.0, 0.5)

    def flags(self, expert: LocalExpert) -> dict[str, Flag]:
        """Enables the metrics page, which shows the queue, and disables the web page. By default one thread runs on
        each physical core, and one core stays free for other processes."""
        threads = min(spare_threads(), psutil.cpu_count(logical=False) or spare_threads())
        defaults: dict[str, Flag] = {"metrics": True, "ui": False, "threads": threads}
        declared = normalized_options(expert.options)
        if declared.get("metrics") is False:  # there is no flag for it
            del declared["metrics"], defaults["metrics"]
        return defaults | declared

    def devices(self, options: Mapping[str, Flag]) -> int:
        """1, because llama.cpp itself splits a model over the GPUs that it sees."""
        return 1

    def problems(
        self, expert: LocalExpert, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        try:
            weights.locate_gguf(expert.model, base_folder=base_folder)
        except FleetError as error:
            yield "model", str(error)
        if _SLEEP_FLAG in options:
            yield "options", f"{_SLEEP_FLAG} does not work, since health checks keep it awake; declare `residency`"

    def server_spec(
        self, first: LocalExpert, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        file = weights.locate_gguf(first.model, base_folder=models.base_folder)
        source = ("--hf-repo", first.model) if file is None else ("--model", str(file), "--offline")
        return ServerSpec(
            key=first.name,
            argv=(
                *(
                    command_of(self, first, address),
                    *source,
                    "--alias",
                    first.name,
                    "--host",
                    address.host,
                    "--port",
                    str(address.port),
                ),
                *arguments.to_argv(self.flags(first)),
            ),
            host=address.host,
            port=address.port,
            env=gpu_environment(first.gpus),
            model=first.name,
            log=address.log,
            ready_timeout=READY_TIMEOUT,
            start_seconds=self.start_seconds,
        )
