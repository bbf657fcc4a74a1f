"""`coe check`: checks experts.yaml, reports what follows from it for the plan and the router in use, and with `--live`
requests one token from every expert."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer

from coe import registry
from coe.cli.common import Config, Json, settings_for
from coe.cli.live_check import check_live
from coe.errors import ArtifactError, ConfigError
from coe.experts.live_check import Finding
from coe.mapping import Consequence
from coe.registry import Registry, yaml_source
from coe.settings import Settings
from coe.terminal import say, say_json

Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")]

Live = Annotated[bool, typer.Option("--live", help="Request one token from every expert, and name what is wrong.")]


def check(config: Config = None, json: Json = False, schema: Schema = False, live: Live = False) -> None:
    """Check experts.yaml: every mistake with its line, what is wrong, and the nearest valid name.

    Then it lists what a start or reload with this file will do with the plan and the router in use, and when `coe plan`
    should be run again. `--config` may name a draft beside the file in use. With `--live` it also requests one token
    from every expert, and exits with 1 where one does not answer.
    """
    if schema:
        say(orjson.dumps(registry.schema(), option=orjson.OPT_INDENT_2).decode())
        return
    settings = settings_for(config)
    try:
        found = registry.load(settings.config, environ=settings.environ)
        _check_local(found, settings)
        follows = _consequences(found, settings)
    except (ConfigError, ArtifactError) as error:
        if not json:
            raise
        say_json({"ok": False, "problems": error.problems if isinstance(error, ConfigError) else [str(error)]})
        raise typer.Exit(1) from None
    replan = any(one.replan for one in follows)
    findings = asyncio.run(check_live(found, settings)) if live else []
    summary = _summary(found, findings, live=live)
    if json:
        say_json(summary | {"consequences": [asdict(one) for one in follows], "replan": replan})
    else:
        counts = f"{len(found.categories)} categories, {len(found.experts)} experts"
        say(f"{settings.config.name}: good ({counts}, digest {found.digest})")
        _show(follows, replan=replan)
        for finding in findings:
            say(finding.sentence)
    if not summary["ok"]:
        raise typer.Exit(1)


def _summary(found: Registry, findings: Sequence[Finding], *, live: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"categories": found.category_names, "experts": found.expert_names, "digest": found.digest}
    if live:
        told["live"] = [{**asdict(finding), "ok": finding.ok} for finding in findings]
    return {"ok": all(finding.ok for finding in findings), **told}


def _consequences(found: Registry, settings: Settings) -> tuple[Consequence, ...]:
    """Those for the artifacts in use. Raises ArtifactError or ConfigError for what would stop a start."""
    from coe.runtime.consequences import consequences_of

    return consequences_of(settings, found)


def _show(follows: tuple[Consequence, ...], *, replan: bool) -> None:
    if follows:
        say("with the router and the plan in use:")
    for one in follows:
        say(f"  - {one.sentence}")
    if replan:
        say("the service starts and reloads with it; then run `coe plan` again")


def _check_local(found: Registry, settings: Settings) -> None:
    """What the experts to be started here need of this machine; a gateway elsewhere is not held up by it."""
    from coe.fleet.validation import find_problems

    source = yaml_source.read(settings.config)
    problems = [
        f"{source.at(('experts', index, key))}: {found.experts[index].name!r}: {what}"
        for index, key, what in find_problems(found.experts, base_folder=settings.config.parent)
    ]
    if problems:
        raise ConfigError(*problems)
