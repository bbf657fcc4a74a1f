"""Models that `coe up` will serve: chooses the inference engine for a model that the user names."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path

from coe.cli.init.listing import ListedModel
from coe.cli.init.selection import Candidate
from coe.cli.init.sources import Source
from coe.errors import ConfigError

_HUB_ENGINES = ("vllm", "sglang", "transformers")
"""Runtimes of models in Hugging Face format."""
_SAFE = re.compile(r"[\w@.:/+~ -]{1,1000}")
"""Names and paths that are written to a file: no quotes, `$` or control characters."""


def installed_engines() -> list[str]:
    """Return the runtimes whose command is on this machine."""
    from coe.fleet.engines.catalog import ENGINES  # for this verb alone
    from coe.fleet.engines.engine import locate_command

    folder = Path(sys.executable).parent
    return [name for name, engine in ENGINES.items() if locate_command(engine.command, folder) is not None]


def engines_for(model: str) -> tuple[str, ...]:
    """Return the runtimes that can serve a model of this name, the preferred one first.

    Paths of folders start with a dot or slash. OWNER/NAME:TAG may be a quantisation of a hub model in GGUF format, or
    a model of Ollama's library. A name without an owner is one of that library, or an old name of a hub model.
    """
    if model.startswith(("hf.co/", "huggingface.co/")):  # Ollama's names of hub models
        return ("ollama",)
    if "gguf" in model.rpartition("/")[2].lower():
        return ("llama.cpp",)
    if model.startswith((".", "/")):
        return _HUB_ENGINES
    if ":" in model:
        return ("llama.cpp", "ollama") if "/" in model else ("ollama",)
    return _HUB_ENGINES if "/" in model else ("ollama", *_HUB_ENGINES)


def served(model: str, installed: Collection[str]) -> Candidate:
    """Return the candidate for a model that the user names: a GGUF file, a folder, or a hub name.

    Paths are written absolute. Raises ConfigError with the remedy where no engine for it is installed, the file is
    missing, or experts.yaml cannot hold its name.
    """
    from coe.fleet.engines.catalog import ENGINES

    path = Path(model).expanduser()
    if not path.exists() and (model.endswith(".gguf") or model.startswith((".", "/", "~"))):
        raise ConfigError(f"--serve {model}: there is no file {path.absolute()}. Nothing was written")
    written = str(path.absolute()) if path.exists() else model
    if not _SAFE.fullmatch(written):
        allowed = "names and paths in experts.yaml have letters, digits, spaces and @._:/+~- only"
        raise ConfigError(f"--serve: {allowed}, and this one is {written!r}. Nothing was written")
    engines = engines_for(written)
    runtime = next((name for name in engines if name in installed), None)
    if runtime is None:
        raise ConfigError(
            f"--serve {model}: {engines[0]}, which would serve it, is not installed (installed: "
            f"{', '.join(installed) or 'none'}); get it with {ENGINES[engines[0]].install}, and run `coe init` again. "
            "Nothing was written"
        )
    return Candidate(Source(runtime, (), "engine", runtime=runtime), "", ListedModel(written), None)
