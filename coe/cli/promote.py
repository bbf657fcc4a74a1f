"""`coe promote` and `coe rollback`: which router, assignment, overlays and gate are in use, moved in one step."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from coe.cli.common import Config, Json, say, say_json, settings_for, store_of

if TYPE_CHECKING:
    from coe.runtime.promotion import Move


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
    store = store_of(settings, kind.value)
    _say(promotion.promote(settings, store, kind.value, version or store.newest(), why=why), json)


def rollback(kind: KindArgument, why: Why = "", config: Config = None, json: Json = False) -> None:
    """Go back to what was in use before; once more, to what was before that."""
    from coe.runtime import promotion

    settings = settings_for(config)
    _say(promotion.roll_back(settings, store_of(settings, kind.value), kind.value, why=why), json)


def _say(move: Move, json: bool) -> None:
    if json:
        say_json({"kind": move.kind, "was": move.was, "in_use": move.in_use})
        return
    nothing = NOTHING[Kind(move.kind)]
    say(f"{move.kind} in use: {move.was or nothing} -> {move.in_use or nothing}")
