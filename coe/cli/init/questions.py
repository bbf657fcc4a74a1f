"""The questions of `coe init` on a terminal. Each has a default, which Enter accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import typer

from coe.cli.init.selection import Candidate, by_answer
from coe.cli.init.sources import PROVIDERS, Source, endpoint, provider, with_keys
from coe.errors import ConfigError
from coe.terminal import print_line

MAX_SHOWN = 40
"""Models of a source that are listed with numbers."""


def further_sources(environ: Mapping[str, str]) -> Iterator[Source]:
    """Yield the endpoints and providers that the user names, until an empty answer."""
    known = {one.name for one in PROVIDERS}
    while answer := _prompt("Address of another OpenAI-compatible server, or name of a provider (Enter for none)"):
        try:
            source = provider(answer, environ) if answer in known else endpoint(answer)
            key = _prompt(f"Environment variable with its key (Enter for {source.key_env or 'none'})") or source.key_env
            yield with_keys([source], [key] if key else [], environ)[0]
        except ConfigError as error:
            print_line(str(error).removeprefix("--endpoint: ").removeprefix("--key-env: "))


def served_models(engines: Sequence[str], served: Callable[[str], Candidate]) -> Iterator[Candidate]:
    """Yield the models that `coe up` is to serve, until an empty answer. `served` raises ConfigError for one that no
    engine can serve."""
    question = f"Model for {' or '.join(engines)} to serve: GGUF file, folder or hub name (Enter for none)"
    while answer := _prompt(question):
        try:
            yield served(answer)
        except ConfigError as error:
            print_line(str(error).removeprefix("--serve ").removesuffix(". Nothing was written"))


def models(source: str, found: Sequence[Candidate], default: Sequence[Candidate]) -> list[Candidate]:
    """Return the models of a source that the user selects."""
    if list(found) == list(default):
        if typer.confirm(f"Use {', '.join(one.listed.id for one in found)} of {source}?", default=True):
            return list(found)
        return []
    for number, one in enumerate(found[:MAX_SHOWN], start=1):
        price = "" if one.prices is None else f"  ${one.prices[0]:.4g} / ${one.prices[1]:.4g}"
        print_line(f"{'*' if one in default else ' '}{number:4}  {one.listed.id}{price}")
    if len(found) > MAX_SHOWN:
        print_line(f"      and {len(found) - MAX_SHOWN} more, which patterns reach")
    while True:
        answer = _prompt(f"Models of {source}: numbers, patterns such as llama*, all or none (Enter for those with *)")
        try:
            return by_answer(answer, found, default)
        except ValueError as error:
            print_line(f"{error} selects no model")


def general_expert(names: Sequence[str], default: str) -> str:
    """Return the expert that answers everything until experts are measured."""
    print_line(f"Experts: {', '.join(names)}")
    question = f"Which one answers until they are measured (Enter for {default})"
    while (answer := _prompt(question) or default) not in names:
        print_line(f"{answer} is not in the list")
    return answer


def _prompt(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False)).strip()
