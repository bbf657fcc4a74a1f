"""`coe init`: writes experts.yaml for the models that run on this machine or that the user's keys reach.

It finds sources, selects models, writes the file, and checks it as `coe check --live` does. It asks nothing: the user
edits the file, whose comments say how.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coe import registry
from coe.cli.check import check_live, check_local_experts
from coe.cli.common import settings_for, writable_file
from coe.cli.init import declaration
from coe.cli.init.sources import (
    LOCAL_SERVERS,
    PROVIDERS,
    Model,
    NoModels,
    default_models,
    endpoint,
    find_models,
    in_environment,
    matching,
)
from coe.errors import ConfigError, pip_install
from coe.registry.capabilities import ModelTable
from coe.settings import Settings
from coe.terminal import print_error, print_line

MAX_EXPERTS = 64
"""Models of one declaration; live checks, scores and plans take time for each."""
Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server; may be repeated.")
]
Key = Annotated[
    str | None, typer.Option("--key-env", metavar="VARIABLE", help="Variable with the key of the one endpoint given.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="PATTERN", help="Only models like this, such as 'gpt-5*'; may be repeated."),
]
Output = Annotated[Path | None, typer.Option("--output", help="File to write [default: COE_CONFIG or experts.yaml].")]
Demo = Annotated[bool, typer.Option("--demo", help="Declare four experts that share the embedded model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Skip the final request of a token from each expert.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def init(
    endpoints: Endpoints = None,
    key_env: Key = None,
    model: Models = None,
    output: Output = None,
    demo: Demo = False,
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Write experts.yaml for the models that run here or that your keys reach, and check it.

    Without --endpoint, it probes Ollama, vLLM, llama.cpp, LM Studio and SGLang at their usual ports of this machine,
    and providers whose variable such as OPENAI_API_KEY is set. It requests /v1/models of each, and takes context
    lengths from the servers, prices and capabilities from litellm's table of models (extra `providers`). In the end
    it requests a few tokens from each expert, and exits with 1 where one does not answer.

    Keys are never written: the file names their variables. An existing file is replaced with --force only.
    """
    settings = settings_for(output)
    path = settings.config
    if path.exists() and not force:
        raise ConfigError(f"{path}: the file exists; write another one with --output, or add --force")
    writable_file(path.resolve())
    if not os.access(path.resolve().parent, os.W_OK):  # the file is replaced as a whole
        raise typer.BadParameter(f"no file may be written to {path.resolve().parent}")
    if not demo:
        chosen, is_complete = _choose(endpoints or (), key_env, model or (), settings)
        _write(settings, declaration.declaration(declaration.named(chosen)))
        _finish(settings, is_live=not offline)
        if endpoints and not is_complete:
            print_error("some of the given endpoints list no models; see above")
            raise typer.Exit(1)
        return
    if endpoints or key_env or model:
        raise typer.BadParameter("cannot be combined with --endpoint, --key-env or --model", param_hint="--demo")
    _write(settings, declaration.demo())
    _finish(settings, is_live=False)


def _choose(
    endpoints: Sequence[str], key_env: str | None, patterns: Sequence[str], settings: Settings
) -> tuple[list[Model], bool]:
    """Select models of the given endpoints, else of what runs here and of the keys that are set; print what was found.

    Returns them, and whether each source lists models. Raises ConfigError if no model or too many are left. Errors do
    not repeat `key_env`, which is the key itself if the user misunderstood the option.
    """
    if key_env and (len(endpoints) != 1 or not settings.environ.get(key_env)):
        raise ConfigError(
            "--key-env: name a variable that is set, not the key itself, and one --endpoint; add experts with other "
            "keys to the written file"
        )
    sources = [endpoint(url, key_env or "") for url in endpoints]
    sources = sources or [*LOCAL_SERVERS, *in_environment(settings.environ)]
    table, chosen, is_complete = ModelTable().entries, list[Model](), True
    for source, models in zip(sources, asyncio.run(find_models(sources, settings.environ, table)), strict=True):
        if isinstance(models, NoModels):
            is_complete, found = False, str(models)
        else:
            found = f"models that chat: {len(models)}"
            chosen += matching(models, patterns) if patterns else default_models(models)
        if not (isinstance(models, NoModels) and models.is_absent):
            print_line(f"{source.name}{f' ({source.key_env})' if source.key_env else ''} at {source.base_url}: {found}")
    if not table:
        install = pip_install("providers")
        print_line(f"note: without litellm, prices and capabilities are mostly unknown; {install} and run it again")
    if len(chosen) > MAX_EXPERTS:
        raise ConfigError(f"{len(chosen)} models are selected, at most {MAX_EXPERTS} fit; narrow them with --model")
    if not chosen:
        raise ConfigError(
            (f"no model matches {', '.join(patterns)}. " if patterns else "no models that chat were found. ")
            + f"Start a server, export a key ({', '.join(one.key_env for one in PROVIDERS)}), or give an address with "
            "--endpoint; `coe init --demo` needs none of these. Nothing was written"
        )
    return chosen, is_complete


def _write(settings: Settings, text: str) -> None:
    """Replace the file, through its link, once the loader accepts the text. Raises ConfigError, or OSError."""
    path = settings.config.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        registry.load(draft, environ=settings.environ)
        if path.exists():
            draft.chmod(path.stat().st_mode)
        draft.replace(path)


def _finish(settings: Settings, *, is_live: bool) -> None:
    """Check the written file and, where `is_live`, its experts; print the result and the next commands."""
    declared = registry.load(settings.config, environ=settings.environ)
    print_line(f"wrote {settings.config}: experts: {len(declared.experts)}, categories: {len(declared.categories)}")
    check_local_experts(declared, settings)
    for spec in declared.experts:
        price = f", ${spec.prices.input:g} and ${spec.prices.output:g} a million tokens" if spec.prices.output else ""
        print_line(f"  {spec.name}: {spec.model}, {spec.context_length} tokens{price}")
    findings = asyncio.run(check_live(declared, settings)) if is_live else []
    for finding in findings:
        print_line(finding.sentence)
    is_default = settings.config == Settings.read().config
    option = "" if is_default else f" --config {shlex.quote(os.path.relpath(settings.config))}"
    if not declared.assignment and len(declared.experts) > 1:
        print_line(f"{declared.general_expert} answers everything until the experts are measured.")
    print_line(f'Next:\n  coe up{option}\n  coe chat{option} "What is 17 * 23?"\n  coe tune{option}')
    if not all(finding.ok for finding in findings):
        print_error("some experts do not answer; correct or remove them, and run `coe check --live`")
        raise typer.Exit(1)
