"""`coe check`: is experts.yaml right?"""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from coe import located, registry
from coe.cli.common import Config, Json, say, say_json, settings_for
from coe.errors import ConfigError
from coe.registry import Registry
from coe.settings import Settings

Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")]


def check(config: Config = None, json: Json = False, schema: Schema = False) -> None:
    """Check experts.yaml: every mistake with its line, what is wrong, and the nearest valid name."""
    if schema:
        say(orjson.dumps(registry.schema(), option=orjson.OPT_INDENT_2).decode())
        return
    settings = settings_for(config)
    try:
        found = registry.load(settings.config, environ=settings.environ)
        _check_local(found, settings)
    except ConfigError as error:
        if not json:
            raise
        say_json({"ok": False, "problems": error.problems})
        raise typer.Exit(1) from None
    summary = {"ok": True, "categories": found.category_names, "experts": found.expert_names, "digest": found.digest}
    if json:
        say_json(summary)
    else:
        counts = f"{len(found.categories)} categories, {len(found.experts)} experts"
        say(f"{settings.config.name}: good ({counts}, digest {found.digest})")


def _check_local(found: Registry, settings: Settings) -> None:
    """What the experts to be started here need of this machine; a gateway elsewhere is not held up by it."""
    from coe.fleet import mistakes

    source = located.read(settings.config)
    problems = [
        f"{source.at(('experts', index, key))}: {found.experts[index].name!r}: {what}"
        for index, key, what in mistakes(found.experts, beside=settings.config.parent)
    ]
    if problems:
        raise ConfigError(*problems)
