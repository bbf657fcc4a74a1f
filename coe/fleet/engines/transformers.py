"""`transformers serve`, for small models on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from coe.errors import pip_install
from coe.fleet import arguments, weights
from coe.fleet.engines.engine import ModelFolders, command_of, resolved_weights, spare_threads, weight_problems
from coe.fleet.specs import START_SECONDS, Flag, ListenAddress, LocalExpert, ServerSpec
from coe.registry.experts import normalized_options

READY_TIMEOUT = 300.0
# Without continuous batching, requests queue, and each is sampled as requested. With it, three run at the speed of one,
# but all are sampled as the first request set (transformers 5.24), so experts that share a model could not have
# different temperatures. Measured with 135M parameters on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_DEFAULTS: Mapping[str, Flag] = {"device": "cpu"}


class Transformers:
    """The InferenceEngine for `transformers serve`. Its servers can only be stopped, not put to sleep."""

    command = "transformers"
    install = f"`{pip_install('local')}`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    start_seconds = START_SECONDS

    def flags(self, expert: LocalExpert) -> dict[str, Flag]:
        return {**_DEFAULTS, **normalized_options(expert.options)}

    def devices(self, options: Mapping[str, Flag]) -> int:
        return 1

    def problems(
        self, expert: LocalExpert, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        return weight_problems(expert.model, base_folder=base_folder)

    def server_spec(
        self, first: LocalExpert, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        model = resolved_weights(first.model, models)
        command = command_of(self, first, address)
        threads = str(spare_threads())
        return ServerSpec(
            key=first.name,
            argv=(
                *(command, "serve", str(model), "--host", address.host, "--port", str(address.port)),
                *arguments.to_argv(self.flags(first)),
            ),
            host=address.host,
            port=address.port,
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
            | weights.offline_environment(model),
            model=str(model),
            log=address.log,
            ready_timeout=READY_TIMEOUT,
        )
