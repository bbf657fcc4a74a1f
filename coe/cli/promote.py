"""`coe promote` and `coe rollback`: which router, assignment, overlays and gate are in use, moved in one step."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from coe.artifacts import Artifact
from coe.cli.common import Config, Json, say, say_json, settings_for, store_of
from coe.errors import ArtifactError
from coe.registry import load
from coe.settings import Settings


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
    settings = settings_for(config)
    store = store_of(settings, kind.value)
    was, version = store.in_use(), version or store.newest()
    check_fits(settings, kind, store.published(version))
    store.promote(version, by="hand", why=why)
    _say(kind, was, version, json)


def rollback(kind: KindArgument, why: Why = "", config: Config = None, json: Json = False) -> None:
    """Go back to what was in use before; once more, to what was before that."""
    settings = settings_for(config)
    store = store_of(settings, kind.value)
    was, move = store.in_use(), store.before()
    if move is None or (move.was is None and kind is Kind.ROUTER):
        raise ArtifactError(f"rollback: no {kind.value} was in use before {was or 'this'}; name one to `coe promote`")
    if move.was is None:
        store.forget(by="rollback", why=why)
    else:
        check_fits(settings, kind, store.published(move.was))
        store.promote(move.was, by="rollback", why=why)
    _say(kind, was, move.was, json)


def check_fits(settings: Settings, kind: Kind, artifact: Artifact) -> None:
    """Raises ArtifactError or ConfigError for a version that a gateway with this experts.yaml would refuse."""
    import routers
    from gateway.in_use import check_fit, read_plan

    if kind is Kind.OVERLAYS:
        _check_overlays(settings, artifact)
        return
    if kind is Kind.GATE:
        _check_gate(settings, artifact)
        return
    registry = load(settings.config, environ=settings.environ)
    if kind is Kind.ASSIGNMENT:
        read_plan(registry, artifact)
        return
    check_fit(registry, artifact)
    routers.check(artifact.folder)


def _check_overlays(settings: Settings, artifact: Artifact) -> None:
    from gateway.in_use import check_router, load_router, other_router, read_overlays

    read_overlays(artifact)
    router = load_router(*check_router(settings))
    if artifact.manifest.data != router.version:
        raise ArtifactError(other_router(artifact, router))


def _check_gate(settings: Settings, artifact: Artifact) -> None:
    from coe.retrieval.gate import FILE, Gate

    declared = load(settings.config, environ=settings.environ).category_names
    if set(Gate.load(artifact.folder / FILE).categories) != set(declared):
        raise ArtifactError(f"gate {artifact.manifest.version} is of other categories than experts.yaml declares")


def _say(kind: Kind, was: str | None, version: str | None, json: bool) -> None:
    if json:
        say_json({"kind": kind.value, "was": was, "in_use": version})
        return
    say(f"{kind.value} in use: {was or NOTHING[kind]} -> {version or NOTHING[kind]}")
