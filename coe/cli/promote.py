"""`coe promote`, `coe rollback` and `coe versions`: change and list which published artifacts are in use.

Kinds of artifacts are router, assignment (the plan) and gate. Each change is atomic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.manifest import ARTIFACT_KINDS
from coe.cli.common import Config, Json, print_result, settings_for, table
from coe.terminal import print_error

if TYPE_CHECKING:
    from coe.artifacts.versions import VersionChange


Kind = Literal["router", "assignment", "gate"]
KindArgument = Annotated[Kind, typer.Argument(metavar="KIND", help="router, assignment or gate")]
Version = Annotated[str | None, typer.Argument(help="[default: the newest]")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the history.")]


def promote(
    kind: KindArgument, version: Version = None, why: Why = "", config: Config = None, json: Json = False
) -> None:
    """Put a published version into use; gateways apply it within a second or two."""
    from coe.artifacts.versions import promote as promote_version

    settings = settings_for(config)
    store = synced_store(settings, kind)
    chosen = version or store.newest(left_out=lambda error: print_error(f"note: a version is left out: {error}"))
    _print(promote_version(settings, store, kind, chosen, why=why), json)


def rollback(kind: KindArgument, why: Why = "", config: Config = None, json: Json = False) -> None:
    """Restore the version that was in use before; a second call restores the one before that."""
    from coe.artifacts.versions import roll_back

    settings = settings_for(config)
    _print(roll_back(settings, synced_store(settings, kind), kind, why=why), json)


def _print(move: VersionChange, json: bool) -> None:
    none = ARTIFACT_KINDS[move.kind].default
    line = f"{move.kind} in use: {move.was or none} -> {move.in_use or none}"
    print_result({"kind": move.kind, "was": move.was, "in_use": move.in_use}, line, json=json)


OptionalKind = Annotated[Kind | None, typer.Argument(metavar="[KIND]", help="One kind [default: all].")]


def versions(kind: OptionalKind = None, config: Config = None, json: Json = False) -> None:
    """List the versions of router, assignment (plan) and gate: origin, quality, date, and what is in use.

    The header x-coe-router, the fields router and plan of the routing log, and `coe promote` use these ids.
    """
    from coe.artifacts.versions import VersionCatalog

    settings = settings_for(config)
    wanted = tuple(ARTIFACT_KINDS) if kind is None else (kind,)
    synced_store(settings, wanted[0])  # fetches the versions in use on other machines
    found = [VersionCatalog(settings.artifacts, one).list_versions() for one in wanted]
    summary = {"kinds": [one | {"quality_of": ARTIFACT_KINDS[one["kind"]].quality} for one in found]}
    print_result(summary, _lines(found), json=json)
    for one in found:
        if one["damaged"] and not json:
            print_error(f"note: {one['damaged']}")


def _lines(kinds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            listed["kind"],
            one["version"],
            "yes" if one["version"] == listed["in_use"] else "",
            one["origin"] or None,
            None if one["quality"] is None else f"{one['quality']:.3f}",
            "damaged" if one["damaged"] else f"{one['created'][:16].replace('T', ' ')} UTC",
        )
        for listed in kinds
        for one in listed["versions"]
    ]
    yield table(("kind", "version", "in use", "origin", ">quality", "made"), rows)
    for listed in kinds:
        if listed["in_use"] is None:
            yield f"{listed['kind']}: {ARTIFACT_KINDS[listed['kind']].default} is in use"
        if listed["more_versions"]:
            yield f"{listed['kind']}: {listed['more_versions']} older versions are not listed"
