"""`coe versions`: what is published of each kind of artifact, where it came from, and what is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from coe.artifacts.store import KINDS
from coe.cli.common import Config, Json, say, say_error, say_json, settings_for, store_of
from coe.cli.promote import NOTHING, Kind

KindArgument = Annotated[Kind | None, typer.Argument(metavar="[KIND]", help="One kind [default: all].")]


def versions(kind: KindArgument = None, config: Config = None, json: Json = False) -> None:
    """List the versions of router, assignment (plan), overlays and gate: origin, quality, date, and what is in use.

    These ids are the ones of x-coe-router, of the fields router and plan in the routing log, and of `coe promote`.
    """
    from coe.runtime.versions import QUALITY_OF, Shelf

    settings = settings_for(config)
    wanted = KINDS if kind is None else (kind.value,)
    store_of(settings, wanted[0])  # what is in use on other machines is there then
    found = [Shelf(settings.artifacts, one).listed() for one in wanted]
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
