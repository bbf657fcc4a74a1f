"""`coe key`: makes an API key and prints its entry for experts.yaml."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from pydantic import ValidationError

from coe.cli.common import Json, print_result
from coe.registry import KeySpec

Name = Annotated[str, typer.Argument(help="Name that logs and records show instead of the key.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="The tenant of its requests [default: the name].")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="chat, route, feedback or admin; may be repeated [default: all but admin]."),
]
Experts = Annotated[
    list[str] | None,
    typer.Option("--expert", help="Expert or pattern that it may use; may be repeated [default: all]."),
]
OnlyLocal = Annotated[bool, typer.Option("--only-local", help="Its requests reach only local experts.")]
Expires = Annotated[str | None, typer.Option("--expires", help="Date from which it is refused, such as 2027-01-31.")]
LimitsOption = Annotated[
    list[str] | None, typer.Option("--limit", help="A limit, such as dollars_per_day=25; may be repeated.")
]


def key(
    name: Name,
    tenant: Tenant = None,
    scope: Scopes = None,
    expert: Experts = None,
    only_local: OnlyLocal = False,
    expires: Expires = None,
    limit: LimitsOption = None,
    json: Json = False,
) -> None:
    """Make an API key. It is printed once and written to no file: experts.yaml holds its digest."""
    from coe.artifacts.api_keys import digest_of, new_key

    limits: dict[str, float] = {}
    for text in limit or ():
        kind, _, number = text.partition("=")
        try:
            limits[kind] = float(number) if "." in number else int(number)
        except ValueError:
            raise typer.BadParameter(f"write NAME=NUMBER, such as dollars_per_day=25, not {text!r}") from None
    fields: dict[str, Any] = {"name": name, "tenant": tenant, "scopes": scope, "experts": expert}
    fields |= {"expires": expires, "only_local": only_local, "limits": limits}
    entry = {field: value for field, value in fields.items() if value}
    try:
        KeySpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise typer.BadParameter(f"{place}: {first['msg']}") from None
    secret = new_key()
    entry["sha256"] = digest_of(secret)
    declared = "\n      ".join(f"{field}: {orjson.dumps(value).decode()}" for field, value in entry.items())
    text = f"{secret}\n\nPass it to its user; it cannot be shown again. In experts.yaml:\n"
    text += f"\naccess:\n  keys:\n    - {declared}"
    print_result({"key": secret, "entry": entry}, text, json=json)
