"""Declared options as the words of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coe.fleet.specs import Flag

RESERVED = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
"""Flags that follow from the rest of the declaration."""


def named(options: Mapping[str, Flag]) -> dict[str, Flag]:
    """The options under the names the command line has for them."""
    return {name.replace("_", "-").removeprefix("--"): value for name, value in options.items()}


def words(options: Mapping[str, Flag]) -> tuple[str, ...]:
    """Flags in the order given; a boolean one is set or negated."""
    return tuple(word for name, value in options.items() for word in _words(name, value))


def _words(name: str, value: Flag) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}"
        yield str(value)
