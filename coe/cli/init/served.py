"""Models that `coe up` will serve: chooses the inference engine for a model that the user names."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

from coe.cli.init.listing import ListedModel
from coe.cli.init.selection import Candidate
from coe.cli.init.sources import Source
from coe.errors import ConfigError
from coe.registry import ExpertSpec

_HUB_ENGINES = ("vllm", "sglang", "transformers")
"""Runtimes of models in Hugging Face format."""
_SAFE = re.compile(r"[\w@.:/+~ -]{1,1000}")
"""Names and paths that are written to a file: no quotes, `$` or control characters."""


def installed_engines() -> list[str]:
    """Return the runtimes whose command is on this machine."""
    from coe.fleet.engines.engine import locate_command  # for this verb alone
    from coe.fleet.planning import ENGINES

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


def served(model: str, installed: Collection[str], *, folder: Path) -> Candidate:
    """Return the candidate for a model that the user names: a GGUF file, a folder, or a hub name.

    Files are relative to the working folder, and are written relative to `folder`, that of experts.yaml. Raises
    ConfigError with the remedy where no engine for it is installed, or the file cannot be served.
    """
    from coe.fleet.planning import ENGINES

    if not _SAFE.fullmatch(model):
        raise ConfigError("--serve: name a GGUF file, a folder, or a hub model OWNER/NAME; no quotes and no `$`")
    path = Path(model).expanduser()
    if not path.exists() and (model.endswith(".gguf") or model.startswith((".", "/", "~"))):
        raise ConfigError(f"--serve {model}: there is no file {path.absolute()}. Nothing was written")
    written = _relative(path, folder) if path.exists() else model
    if not _SAFE.fullmatch(written):
        allowed = "paths in experts.yaml have letters, digits, spaces and @._:/+~- only"
        raise ConfigError(f"--serve {model}: {allowed}, and this one is {written!r}; move it. Nothing was written")
    runtime = next((name for name in engines_for(written) if name in installed), None)
    if runtime is None:
        first, here = engines_for(written)[0], ", ".join(installed) or "none"
        raise ConfigError(
            f"--serve {model}: {first}, which would serve it, is not installed (installed: {here}); get it with "
            f"{ENGINES[first].install}, and run `coe init` again. Nothing was written"
        )
    expert = ExpertSpec(name="served", model=written, runtime=runtime)
    for _, what in ENGINES[runtime].problems(expert, folder):
        raise ConfigError(f"--serve {model}: {what}. Nothing was written")
    return Candidate(Source(runtime, (), "engine", runtime=runtime), "", ListedModel(written), None)


def _relative(path: Path, folder: Path) -> str:
    """The path as experts.yaml names it: relative to its folder if it lies in it. A folder begins with a dot, so that
    it is not taken for a hub name."""
    absolute = path.absolute()
    if not absolute.is_relative_to(folder.absolute()):
        return str(absolute)
    inside = os.path.relpath(absolute, folder.absolute())
    return inside if path.is_file() else f"./{inside}"
