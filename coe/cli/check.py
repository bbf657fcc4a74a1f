"""`coe check` and `coe key`: both are about experts.yaml.

`coe check` validates it, lists what follows for the router and the plan in use, and with `--live` requests one token
from every expert, as `coe up` does at its start. `coe key` makes an API key and prints the entry with its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import orjson
import typer
from pydantic import ValidationError

from coe import registry
from coe.cli.common import Config, Json, settings_for
from coe.errors import ArtifactError, ConfigError
from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.experts.live_check import Finding, check_experts
from coe.mapping import Consequence
from coe.registry import ApiKey, Registry, yaml_source
from coe.settings import Endpoint, Settings
from coe.terminal import print_json, print_line

ENDPOINTS_FILE = "endpoints.json"
"""File of the state folder in which `coe up` writes the addresses of local experts."""

Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")]
Live = Annotated[bool, typer.Option("--live", help="Request one token from every expert, and report what is wrong.")]


def check(config: Config = None, json: Json = False, schema: Schema = False, live: Live = False) -> None:
    """Check experts.yaml: every mistake with its line, what is wrong, and the nearest valid name.

    Then it lists what a start or reload with this file will do with the plan and the router in use, and when `coe plan`
    should be run again. `--config` may name a draft beside the file in use. With `--live` it also requests one token
    from every expert, and exits with 1 where one does not answer.
    """
    if schema:
        print_line(orjson.dumps(registry.schema(), option=orjson.OPT_INDENT_2).decode())
        return
    from coe.runtime.consequences import consequences_of

    settings = settings_for(config)
    try:
        declared = registry.load(settings.config, environ=settings.environ)
        _check_local_experts(declared, settings)
        consequences = consequences_of(settings, declared)
    except (ConfigError, ArtifactError) as error:
        if not json:
            raise
        print_json({"ok": False, "problems": error.problems if isinstance(error, ConfigError) else [str(error)]})
        raise typer.Exit(1) from None
    findings = asyncio.run(check_live(declared, settings)) if live else []
    summary: dict[str, Any] = {
        "ok": all(finding.ok for finding in findings),
        "categories": declared.category_names,
        "experts": declared.expert_names,
        "variants": [variant.name for variant in declared.variants],
        "recipes": {recipe.name: recipe.steps for recipe in declared.declared_recipes},
        "digest": declared.digest,
    }
    if live:
        summary["live"] = [asdict(one) | {"ok": one.ok} for one in findings]
    if json:
        replan = any(one.replan for one in consequences)
        print_json(summary | {"consequences": [asdict(one) for one in consequences], "replan": replan})
    else:
        _show(declared, settings, consequences, findings)
    if not summary["ok"]:
        raise typer.Exit(1)


def _check_local_experts(declared: Registry, settings: Settings) -> None:
    """Check what local experts need of this machine; raises ConfigError. A gateway alone does not need it."""
    from coe.fleet.validation import find_problems

    source = yaml_source.read(settings.config)
    problems = [
        f"{source.at(('experts', index, key))}: {declared.experts[index].name!r}: {what}"
        for index, key, what in find_problems(declared.experts, base_folder=settings.config.parent)
    ]
    if problems:
        raise ConfigError(*problems)


def _show(
    declared: Registry, settings: Settings, consequences: Sequence[Consequence], findings: Sequence[Finding]
) -> None:
    counts = f"{len(declared.categories)} categories, {len(declared.experts)} experts"
    if declared.variants:
        counts += f", {len(declared.variants)} variants"
    if declared.declared_recipes:
        counts += f", {len(declared.declared_recipes)} recipes"
    print_line(f"{settings.config.name}: good ({counts}, digest {declared.digest})")
    if consequences:
        print_line("with the router and the plan in use:")
    for one in consequences:
        print_line(f"  - {one.sentence}")
    if any(one.replan for one in consequences):
        print_line("the service starts and reloads with it; then run `coe plan` again")
    for finding in findings:
        print_line(finding.sentence)


async def check_live(declared: Registry, settings: Settings) -> list[Finding]:
    """Request one token from every expert, but not from experts that share a device: that would make them switch.

    A local expert that `coe up` does not run is a finding too. Raises ConfigError.
    """
    served = _served(settings)
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
        try:
            return [*await check_experts(experts.values(), session=session), *missing]
        finally:
            for expert in experts.values():
                await expert.aclose()


def _served(settings: Settings) -> Mapping[str, tuple[Endpoint, ...]]:
    """The addresses of local experts: those of the environment, else those that the last `coe up` wrote."""
    if served := settings.served():
        return served
    file = settings.home / ENDPOINTS_FILE
    return replace(settings, endpoints_file=file).served() if file.exists() else {}


Name = Annotated[str, typer.Argument(help="The name that logs and records show instead of the key.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="The tenant of its requests [default: the name].")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="chat, route, feedback or admin; may be repeated [default: all but admin]."),
]


def key(name: Name, tenant: Tenant = None, scope: Scopes = None, json: Json = False) -> None:
    """Make an API key. It is printed once and stored nowhere; experts.yaml holds its digest."""
    from coe.runtime.api_keys import digest_of, new_key

    new = new_key()
    entry: dict[str, str | list[str]] = {"name": name, "sha256": digest_of(new)}
    if tenant is not None:
        entry["tenant"] = tenant
    if scope:
        entry["scopes"] = scope
    try:
        ApiKey.model_validate(entry)
    except ValidationError as error:
        raise typer.BadParameter(_reason(error)) from None
    if json:
        print_json({"key": new, "entry": entry})
    else:
        print_line(_key_text(new, entry))


def _key_text(new: str, entry: dict[str, str | list[str]]) -> str:
    rest = [f"      {field}: {_yaml(value)}" for field, value in list(entry.items())[1:]]
    return "\n".join(
        [
            new,
            "",
            "Pass it to its user; it cannot be shown again. In experts.yaml:",
            "",
            "access:",
            "  keys:",
            f"    - name: {_yaml(entry['name'])}",
            *rest,
        ]
    )


def _yaml(value: str | list[str]) -> str:
    """Names are quoted, since YAML reads some as numbers or booleans."""
    return f"[{', '.join(value)}]" if isinstance(value, list) else f'"{value}"'


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    return f"{place}: {first['msg']}"
