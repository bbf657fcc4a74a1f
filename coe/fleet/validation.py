"""What is wrong with declared local experts before anything is started: their folders, devices and flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.specs import Flag, LocalExpert
from coe.fleet.vllm import lora

_PARALLEL = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")

Mistake = tuple[int, str, str]
"""Which expert, which of its keys, what is wrong and what to do."""


def mistakes(experts: Sequence[LocalExpert], *, beside: Path) -> Iterator[Mistake]:
    """All that can be told from the declaration and the disk; folders are relative to `beside`.

    Not whether a hub has the model, a flag exists, or the devices are there: the server itself says that.
    """
    for index, expert in enumerate(experts):
        for key, what in _of_one(expert, beside):
            yield index, key, what
    yield from _split_bases(experts)


def _of_one(expert: LocalExpert, beside: Path) -> Iterator[tuple[str, str]]:
    if expert.runtime != "vllm":
        for key, given in (("adapter", expert.adapter), ("gpus", expert.gpus)):
            if given:
                yield key, f"`{key}` is for runtime vllm; {expert.runtime} has no use for it"
    if expert.runtime not in ("vllm", "transformers"):
        return
    options = arguments.named(expert.options)
    if reserved := arguments.RESERVED & options.keys():
        named = ", ".join(sorted(reserved))
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {named}; CoE does{hint}"
    try:
        weights.look_for(expert.model, beside=beside)
    except FleetError as error:
        yield "model", str(error)
    if expert.runtime == "vllm":
        yield from _adapter(expert, options, beside)
        yield from _devices(expert, options)


def _adapter(expert: LocalExpert, options: dict[str, Flag], beside: Path) -> Iterator[tuple[str, str]]:
    if expert.adapter is None:
        return
    folder = (beside / Path(expert.adapter).expanduser()).absolute()
    if found := lora.problem(folder):
        yield "adapter", found
        return
    if options.get("enable-lora") is False:
        yield "options", "an adapter needs LoRA, and the options say enable-lora: false; take that away"
    room, needed = options.get("max-lora-rank"), lora.rank(folder)
    if isinstance(room, int) and room < needed:
        yield "options", f"the adapter has rank {needed} and max-lora-rank allows {room}; raise or remove it"


def _devices(expert: LocalExpert, options: dict[str, Flag]) -> Iterator[tuple[str, str]]:
    if not expert.gpus:
        return
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    sizes = [size for name in _PARALLEL if isinstance(size := options.get(name), int)]
    if sizes and prod(sizes) > len(expert.gpus):
        yield "gpus", f"the options spread the model over {prod(sizes)} devices and `gpus` names {len(expert.gpus)}"


def _split_bases(experts: Sequence[LocalExpert]) -> Iterator[Mistake]:
    """An adapter beside its base, but with other flags, would load the model a second time; nobody means that."""
    served = [(index, expert) for index, expert in enumerate(experts) if expert.runtime == "vllm"]
    for index, expert in served:
        if not expert.adapter:
            continue
        for _, other in served:
            if other.model == expert.model and _setting(other) != _setting(expert):
                yield (
                    index,
                    "options" if other.gpus == expert.gpus else "gpus",
                    f"shares the model of {other.name!r} but not its options and gpus, so that the model would be "
                    "loaded twice; write the same",
                )
                break


def _setting(expert: LocalExpert) -> tuple[object, ...]:
    return arguments.words(arguments.named(expert.options)), expert.gpus
