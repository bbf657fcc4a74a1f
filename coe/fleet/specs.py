"""Which server processes the declared experts need: experts that name the same model and flags share one."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.ports import HOST, free_port
from coe.settings import Endpoint

Flag = str | int | float | bool
_log = logging.getLogger(__name__)

# Without continuous batching, requests queue one behind another, and each is sampled as it asks. With it three run at
# the speed of one, but every request is sampled as the first one asked (transformers 5.24), so that experts which share
# a model could not differ by temperature. Measured with 135M parameters on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_TRANSFORMERS_FLAGS: Mapping[str, Flag] = {"device": "cpu"}
_OURS = frozenset({"host", "port", "served-model-name", "model"})


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server process to run.

    `key` names it in messages and files; `argv` is run with `env` on top of the environment; `model` is what requests
    must name, None for a server that has no model of its own and says by itself when it is ready (the gateway); `log`
    takes its output; `ready_timeout` is in seconds, from start to first answer; `host` is where it can be asked.
    """

    key: str
    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(repr=False)
    model: str | None
    log: Path
    ready_timeout: float
    host: str = HOST


class LocalExpert(Protocol):
    """What planning reads of a declared expert; `options` are command line flags, a boolean one set or negated."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Flag]: ...


def local_servers(
    experts: Sequence[LocalExpert],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    say: Callable[[str], None] = _log.info,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """The servers to start and, by expert name, where each local expert will be served. External experts are left out.

    `python` is the interpreter beside which the servers' commands are installed. The first use of a packaged model
    converts it into `cache`, which takes about 20 s and blocks. Raises FleetError for what cannot be run.
    """
    servers: dict[tuple[str, str, tuple[str, ...]], ServerSpec] = {}
    endpoints: dict[str, Endpoint] = {}
    for expert in experts:
        if expert.runtime == "external":
            continue
        shared_by = (expert.runtime, expert.model, _flags(expert))
        if shared_by not in servers:
            model = weights.resolve(expert.model, cache=cache, say=say)
            port = free_port(avoid={spec.port for spec in servers.values()})
            plan = _vllm if expert.runtime == "vllm" else _transformers
            servers[shared_by] = plan(
                expert, model, port=port, log=logs / f"{expert.name}.log", bin_folder=python.parent
            )
        spec = servers[shared_by]
        assert spec.model is not None
        endpoints[expert.name] = Endpoint(base_url=f"http://{HOST}:{spec.port}/v1", model=spec.model)
    return list(servers.values()), endpoints


def _transformers(expert: LocalExpert, model: Path | str, *, port: int, log: Path, bin_folder: Path) -> ServerSpec:
    command = _command("transformers", expert=expert, bin_folder=bin_folder, extra="coe[local]")
    threads = str(max(1, _cores() - 1))  # as many model threads as busy cores fall to a tenth of the speed
    return ServerSpec(
        key=expert.name,
        argv=(command, "serve", str(model), "--host", HOST, "--port", str(port), *_flags(expert)),
        port=port,
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        | _offline(model),
        model=str(model),
        log=log,
        ready_timeout=300.0,
    )


def _vllm(expert: LocalExpert, model: Path | str, *, port: int, log: Path, bin_folder: Path) -> ServerSpec:
    command = _command("vllm", expert=expert, bin_folder=bin_folder, extra="vllm")
    address = ("--host", HOST, "--port", str(port), "--served-model-name", expert.name)
    return ServerSpec(
        key=expert.name,
        argv=(command, "serve", str(model), *address, *_flags(expert)),
        port=port,
        env=_offline(model),
        model=expert.name,
        log=log,
        ready_timeout=900.0,
    )


def _command(name: str, *, expert: LocalExpert, bin_folder: Path, extra: str) -> str:
    beside = bin_folder / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FleetError(
            f"expert {expert.name!r}: the command {name!r} is neither in {bin_folder} nor on PATH; "
            f"install it with `pip install '{extra}'`, or declare the expert as external"
        )
    return found


def _flags(expert: LocalExpert) -> tuple[str, ...]:
    given = {name.replace("_", "-"): value for name, value in expert.options.items()}
    if reserved := _OURS & given.keys():
        raise FleetError(f"expert {expert.name!r}: the options may not set {', '.join(sorted(reserved))}; CoE does")
    flags = {**_TRANSFORMERS_FLAGS, **given} if expert.runtime == "transformers" else given
    return tuple(word for name, value in flags.items() for word in _words(name, value))


def _words(name: str, value: Flag) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}"
        yield str(value)


def _offline(model: Path | str) -> dict[str, str]:
    """A model on disk needs no hub, and a server that cannot reach one should not wait for it."""
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if isinstance(model, Path) else {}


def _cores() -> int:
    """The cores this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
