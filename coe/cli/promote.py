"""`coe promote` and `coe rollback`: which router, assignment, overlays and gate are in use, moved in one step.

`coe versions`: what is published of each kind of artifact, where it came from, and what is in use.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from coe.cli.common import Config, Json, settings_for
from coe.runtime.artifact_sync import synced_store
from coe.terminal import say, say_json

if TYPE_CHECKING:
    from coe.runtime.promotion import VersionChange
from collections.abc import Mapping, Sequence
from typing import Any

from coe.artifacts.store import ARTIFACT_KINDS
from coe.terminal import say_error


class Kind(StrEnum):
    """What can be promoted."""

    ROUTER = "router"
    ASSIGNMENT = "assignment"
    OVERLAYS = "overlays"
    GATE = "gate"


NOTHING = {kind: "as declared in experts.yaml" if kind is Kind.ASSIGNMENT else "none" for kind in Kind}
"""What is in use where no version is."""


KindArgument = Annotated[Kind, typer.Argument(metavar="KIND", help="router, assignment, overlays or gate")]
Version = Annotated[str | None, typer.Argument(help="[default: the one made last]")]
Why = Annotated[str, typer.Option("--why", help="Kept in the history.")]


def promote(
    kind: KindArgument, version: Version = None, why: Why = "", config: Config = None, json: Json = False
) -> None:
    """Put a version into use that was trained, planned or learnt; gateways take it over within a second or two."""
    from coe.runtime import promotion

    settings = settings_for(config)
    store = synced_store(settings, kind.value)
    _say(promotion.promote(settings, store, kind.value, version or store.newest(), why=why), json)


def rollback(kind: KindArgument, why: Why = "", config: Config = None, json: Json = False) -> None:
    """Go back to what was in use before; once more, to what was before that."""
    from coe.runtime import promotion

    settings = settings_for(config)
    _say(promotion.roll_back(settings, synced_store(settings, kind.value), kind.value, why=why), json)


def _say(move: VersionChange, json: bool) -> None:
    if json:
        say_json({"kind": move.kind, "was": move.was, "in_use": move.in_use})
        return
    nothing = NOTHING[Kind(move.kind)]
    say(f"{move.kind} in use: {move.was or nothing} -> {move.in_use or nothing}")


KindArgument_versions = Annotated[Kind | None, typer.Argument(metavar="[KIND]", help="One kind [default: all].")]


def versions(kind: KindArgument_versions = None, config: Config = None, json: Json = False) -> None:
    """List the versions of router, assignment (plan), overlays and gate: origin, quality, date, and what is in use.

    These ids are the ones of x-coe-router, of the fields router and plan in the routing log, and of `coe promote`.
    """
    from coe.runtime.versions import QUALITY_OF, VersionCatalog

    settings = settings_for(config)
    wanted = ARTIFACT_KINDS if kind is None else (kind.value,)
    synced_store(settings, wanted[0])  # what is in use on other machines is there then
    found = [VersionCatalog(settings.artifacts, one).list_versions() for one in wanted]
    if json:
        say_json({"kinds": [_plain(one) | {"quality_of": QUALITY_OF[one["kind"]]} for one in found]})
        return
    _show(found)
    for one in found:
        if one["damaged"]:
            say_error(f"note: {one['damaged']}")


def _plain(listed: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("version", "origin", "quality", "created", "damaged")
    rows = [
        {name: one[name] for name in fields} | {"in_use": one["version"] == listed["in_use"]}
        for one in listed["versions"]
    ]
    names = ("kind", "in_use", "more_versions")
    return {name: listed[name] for name in names} | {"versions": rows}


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    say(f"{'kind':10}  {'version':14}  {'in use':6}  {'origin':7}  {'quality':>7}  made")
    for listed in found:
        if listed["in_use"] is None:
            say(f"{listed['kind']:10}  {NOTHING[Kind(listed['kind'])]} is in use")
        for one in listed["versions"]:
            used = "yes" if one["version"] == listed["in_use"] else ""
            quality = "-" if one["quality"] is None else f"{one['quality']:.3f}"
            made = "damaged" if one["damaged"] else f"{one['created'][:16].replace('T', ' ')} UTC"
            origin = one["origin"] or "-"
            say(f"{listed['kind']:10}  {one['version']:14}  {used:6}  {origin:7}  {quality:>7}  {made}")
        if listed["more_versions"]:
            say(f"{listed['kind']:10}  {listed['more_versions']} older versions are not listed")
