"""`coe key`: makes an API key and prints the entry for experts.yaml that holds its digest."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError

from coe.cli.common import Json
from coe.registry import ApiKey
from coe.terminal import print_json, print_line

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
        print_line(_text(new, entry))


def _text(new: str, entry: dict[str, str | list[str]]) -> str:
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
