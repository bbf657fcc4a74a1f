"""Validates declared local experts before anything starts: their folders, devices and flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.specs import Flag, LocalExpert
from coe.fleet.vllm.command import adapter_problem, adapter_rank

Problem = tuple[int, str, str]
"""The index of the expert, its key in experts.yaml, and what is wrong with the remedy."""


def find_problems(experts: Sequence[LocalExpert], *, base_folder: Path) -> Iterator[Problem]:
    """Yields all problems visible in the declaration and on disk; folders are relative to `base_folder`.

    Whether a hub has the model, a flag exists, or the devices are present is reported by the server itself.
    """
    for index, expert in enumerate(experts):
        for key, what in _expert_problems(expert, base_folder):
            yield index, key, what
    yield from _split_model_problems(experts)


def _expert_problems(expert: LocalExpert, base_folder: Path) -> Iterator[tuple[str, str]]:
    if expert.runtime != "vllm":
        for key, declared in (("adapter", expert.adapter), ("gpus", expert.gpus)):
            if declared:
                yield key, f"`{key}` is for runtime vllm; {expert.runtime} does not support it"
    if expert.runtime not in ("vllm", "transformers"):
        return
    options = arguments.normalized(expert.options)
    if reserved := arguments.RESERVED_FLAGS & options.keys():
        normalized = ", ".join(sorted(reserved))
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {normalized}; CoE does{hint}"
    try:
        weights.locate(expert.model, base_folder=base_folder)
    except FleetError as error:
        yield "model", str(error)
    if expert.runtime == "vllm":
        yield from _adapter_problems(expert, options, base_folder)
        yield from _device_problems(expert, options)


def _adapter_problems(expert: LocalExpert, options: dict[str, Flag], base_folder: Path) -> Iterator[tuple[str, str]]:
    if expert.adapter is None:
        return
    folder = (base_folder / Path(expert.adapter).expanduser()).absolute()
    if found := adapter_problem(folder):
        yield "adapter", found
        return
    if options.get("enable-lora") is False:
        yield "options", "an adapter needs LoRA, and the options say enable-lora: false; remove that"
    max_rank, needed = options.get("max-lora-rank"), adapter_rank(folder)
    if isinstance(max_rank, int) and max_rank < needed:
        yield "options", f"the adapter has rank {needed} and max-lora-rank allows {max_rank}; raise or remove it"


def _device_problems(expert: LocalExpert, options: dict[str, Flag]) -> Iterator[tuple[str, str]]:
    if not expert.gpus:
        return
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    if (size := arguments.parallel_size(options)) > len(expert.gpus):
        yield "gpus", f"the options spread the model over {size} devices and `gpus` names {len(expert.gpus)}"


def _split_model_problems(experts: Sequence[LocalExpert]) -> Iterator[Problem]:
    """Yields adapters whose flags differ from those of their base, which would load the model a second time."""
    served = [(index, expert) for index, expert in enumerate(experts) if expert.runtime == "vllm"]
    for index, expert in served:
        if not expert.adapter:
            continue
        for _, other in served:
            if other.model == expert.model and _options_and_gpus(other) != _options_and_gpus(expert):
                yield (
                    index,
                    "options" if other.gpus == expert.gpus else "gpus",
                    f"shares the model of {other.name!r} but not its options and gpus, so that the model would be "
                    "loaded twice; write the same",
                )
                break


def _options_and_gpus(expert: LocalExpert) -> tuple[object, ...]:
    return arguments.to_argv(arguments.normalized(expert.options)), expert.gpus
