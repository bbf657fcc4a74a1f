"""`coe check`: validates experts.yaml, and lists what follows for the router and the plan in use.

With `--live` it requests a few tokens from every expert, as `coe up` does at its start.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Annotated, Any

import orjson
import typer

from coe import registry
from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, File, Json, settings_for
from coe.errors import ArtifactError, ConfigError, DataError
from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.experts.live_check import Finding, check_experts
from coe.measuring import sandbox
from coe.registry import Registry, yaml_source
from coe.registry.rules import rule_notes
from coe.settings import Settings
from coe.terminal import print_json, print_line

ENDPOINTS_FILE = "endpoints.json"
"""File of the state folder in which `coe up` writes the addresses of local experts."""

Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")]
Live = Annotated[bool, typer.Option("--live", help="Request a few tokens from every expert, and report what is wrong.")]


def check(
    file: File = None, config: Config = None, json: Json = False, schema: Schema = False, live: Live = False
) -> None:
    """Check experts.yaml: every mistake with its line, what is wrong, and the nearest valid name.

    Then it lists what a start or reload with this file will do with the plan and the router in use, and when `coe plan`
    should be run again. FILE may be a draft next to the file in use. With `--live` it also requests a few tokens
    from every expert, and exits with 1 where one does not answer.
    """
    if schema:
        print_line(orjson.dumps(registry.schema(), option=orjson.OPT_INDENT_2).decode())
        return
    from coe.artifacts.versions import consequences_of
    from coe.fleet.engines import check_local_experts

    settings = settings_for(config or file)
    try:
        declared = registry.load(settings.config, environ=settings.environ)
        check_local_experts(declared, settings.config)
        _check_categories(declared, settings)
        consequences = consequences_of(settings, declared)
    except (ConfigError, ArtifactError, DataError) as error:
        if not json:
            raise
        print_json({"ok": False, "problems": error.problems if isinstance(error, ConfigError) else [str(error)]})
        raise typer.Exit(1) from None
    findings = asyncio.run(check_live(declared, settings)) if live else []
    summary: dict[str, Any] = {
        "ok": all(finding.ok for finding in findings),
        "categories": declared.category_names,
        "experts": declared.expert_names,
        "recipes": {recipe.name: recipe.steps for recipe in declared.declared_recipes},
        "digest": declared.digest,
        "notes": notes_on(declared, settings),
    }
    if live:
        summary["live"] = [asdict(one) | {"ok": one.ok} for one in findings]
    if json:
        replan = any(one.replan for one in consequences)
        print_json(summary | {"consequences": [asdict(one) for one in consequences], "replan": replan})
    else:
        counts = f"{len(declared.categories)} categories, {len(declared.experts)} experts"
        if declared.declared_recipes:
            counts += f", {len(declared.declared_recipes)} recipes"
        print_line(f"{settings.config.name}: good ({counts}, digest {declared.digest})")
        if consequences:
            print_line("with the router and the plan in use:")
        for one in consequences:
            print_line(f"  - {one.sentence}")
        if any(one.replan for one in consequences):
            print_line("the service starts and reloads with it; then run `coe plan` again")
        for line in (*(finding.sentence for finding in findings), *(f"note: {note}" for note in summary["notes"])):
            print_line(line)
    if not summary["ok"]:
        raise typer.Exit(1)


def _check_categories(declared: Registry, settings: Settings) -> None:
    """Check that the router in use, or else training at the first start, accepts each category.

    Raises ConfigError with the lines, or DataError.
    """
    from coe.artifacts.active_state import untrained_categories
    from coe.learning.router_round import training_problems

    if declared.artifacts != "folder":
        return
    store = ArtifactStore(settings.artifacts, ROUTER)
    if (version := store.in_use()) is not None:
        found = untrained_categories(declared, store.manifest(version).categories)
    else:
        found = training_problems(declared, base=settings.config.parent)
    source = yaml_source.read(settings.config)
    if problems := [f"{source.at(('categories', index))}: {what}" for index, what in found.items()]:
        raise ConfigError(*problems)


def notes_on(declared: Registry, settings: Settings) -> list[str]:
    """Return notes on settings that are valid but have an effect that is easily missed."""
    source = yaml_source.read(settings.config)
    notes = [f"{source.at(('rules', index))}: {note}" for index, note in rule_notes(declared.rules)]
    if "code" in declared.category_names and not sandbox.installed():
        notes.append(
            "bubblewrap is not installed: `coe score` and `coe tune` leave out the shipped probes that run code"
        )
    return notes


async def check_live(declared: Registry, settings: Settings) -> list[Finding]:
    """Request a few tokens from every expert, but not from experts that share a device: that would make them switch.

    A local expert that `coe up` does not run is a finding too. Raises ConfigError.
    """
    served, file = settings.served(), settings.home / ENDPOINTS_FILE
    if not served and file.exists():
        served = replace(settings, endpoints_file=file).served()
    checked, missing = [], []
    for spec in declared.experts:
        is_local = not spec.addresses and spec.runtime != "litellm"
        if is_local and declared.residency is not None:
            continue
        if is_local and not served.get(spec.name):
            missing.append(
                Finding(spec.name, "this machine", "connection_refused", "it is not running", "start it with `coe up`")
            )
        else:
            checked.append(spec)
    async with Client() as session:
        experts = build_experts(declared.model_copy(update={"experts": tuple(checked)}), served, session=session)
        return [*await check_experts(experts.values(), session=session), *missing]
