"""Validates declared local experts before anything starts: their folders, devices and flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from coe.fleet.engines.catalog import ENGINES
from coe.fleet.specs import LocalExpert
from coe.registry.experts import normalized_options
from coe.registry.runtimes import RUNTIMES, with_feature

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
    runtime = RUNTIMES[expert.runtime]
    for key, feature, declared in (("adapter", "adapters", expert.adapter), ("gpus", "gpus", expert.gpus)):
        if declared and not getattr(runtime, feature):
            yield key, f"`{key}` is for runtime {with_feature(feature)}; {expert.runtime} does not support it"
    engine = ENGINES.get(expert.runtime)
    if engine is None:
        return
    options = normalized_options(expert.options)
    if reserved := engine.reserved_flags & options.keys():
        normalized = ", ".join(sorted(reserved))
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {normalized}; CoE does{hint}"
    yield from engine.problems(expert, options, base_folder=base_folder)
    if runtime.gpus:
        yield from _device_problems(expert, engine.devices(options))


def _device_problems(expert: LocalExpert, size: int) -> Iterator[tuple[str, str]]:
    if not expert.gpus:
        return
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    if size > len(expert.gpus):
        yield "gpus", f"the options spread the model over {size} devices and `gpus` names {len(expert.gpus)}"


def _split_model_problems(experts: Sequence[LocalExpert]) -> Iterator[Problem]:
    """Yields adapters whose flags differ from those of their base, which would load the model a second time."""
    served = [(index, expert) for index, expert in enumerate(experts) if RUNTIMES[expert.runtime].adapters]
    for index, expert in served:
        if not expert.adapter:
            continue
        for _, other in served:
            if (other.runtime, other.model) == (expert.runtime, expert.model) and other.server_key != expert.server_key:
                yield (
                    index,
                    "options" if other.gpus == expert.gpus else "gpus",
                    f"shares the model of {other.name!r} but not its options and gpus, so that the model would be "
                    "loaded twice; write the same",
                )
                break
