"""`coe key`: makes an API key, for experts.yaml or in use at once (`--issue`); revokes issued keys.

Issued keys are stored beside the usage counters (`access.counters`); gateways apply changes within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from pydantic import ValidationError

from coe.cli.common import Config, Json, declaration_for, print_result
from coe.registry import ApiKey, KeySpec, Registry

T = TypeVar("T")

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
Issue = Annotated[bool, typer.Option("--issue", help="Put the key into use at once, without a change of experts.yaml.")]
Revoke = Annotated[bool, typer.Option("--revoke", help="Revoke the issued key NAME.")]
BY = "the command line"


def key(
    name: Name,
    tenant: Tenant = None,
    scope: Scopes = None,
    expert: Experts = None,
    only_local: OnlyLocal = False,
    expires: Expires = None,
    limit: LimitsOption = None,
    issue: Issue = False,
    revoke: Revoke = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make an API key. It is printed once and written to no file: experts.yaml holds its digest.

    With `--issue` the key is in use at once, without an entry in experts.yaml, and `--revoke` ends that.
    """
    if revoke:
        if issue or tenant or scope or expert or only_local or expires or limit:
            raise typer.BadParameter("takes the name alone", param_hint="--revoke")
        from gateway.access.issued_keys import revoke as revoke_key

        registry, changed = _open_keys(config)
        revoked = changed(lambda issued: revoke_key(registry, issued, name))
        line = f"{name}: revoked; running gateways refuse it within a second"
        print_result({"revoked": _shown(revoked)}, line, json=json)
    else:
        fields: dict[str, Any] = {"name": name, "tenant": tenant, "scopes": scope, "experts": expert}
        fields |= {"expires": expires, "only_local": only_local, "limits": _limits(limit or ())}
        entry = {field: value for field, value in fields.items() if value}
        _make(config, entry, issue=issue, json=json)


def _limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits of NAME=NUMBER. Raises BadParameter."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number) if "." in number else int(number)
        except ValueError:
            raise typer.BadParameter(f"write NAME=NUMBER, such as dollars_per_day=25, not {text!r}") from None
    return found


def _make(config: Path | None, entry: dict[str, Any], *, issue: bool, json: bool) -> None:
    """Print a new key, after putting it into use where `issue`, or else with its entry for experts.yaml."""
    from coe.artifacts.api_keys import digest_of, new_key
    from gateway.access.issued_keys import issue as issue_key

    try:
        spec = KeySpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise typer.BadParameter(f"{place}: {first['msg']}") from None
    new = new_key()
    digest = digest_of(new)
    once = f"{new}\n\nPass it to its user; it cannot be shown again."
    if issue:
        registry, changed = _open_keys(config)
        made = changed(
            lambda issued: issue_key(registry, issued, spec, sha256=digest, by=None, by_name=BY, now=time.time())
        )
        text = f"{once}\nIt is in use until `coe key {made.name} --revoke`."
        print_result({"key": new, "issued": _shown(made)}, text, json=json)
    else:
        entry["sha256"] = digest
        declared = "\n      ".join(f"{field}: {orjson.dumps(value).decode()}" for field, value in entry.items())
        text = f"{once} In experts.yaml:\n\naccess:\n  keys:\n    - {declared}"
        print_result({"key": new, "entry": entry}, text, json=json)


def _shown(one: ApiKey) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude={"sha256"})


def _open_keys(config: Path | None) -> tuple[Registry, Callable[[Callable[[Any], tuple[T, Any]]], T]]:
    """The declaration with the administrator's key, and a function that changes the stored keys."""
    from coe.artifacts.api_keys import with_admin_key
    from coe.errors import RequestError
    from gateway.access.issued_keys import open_key_store

    settings, registry = declaration_for(config)
    declared = with_admin_key(registry, settings)

    async def run(decide: Callable[[Any], tuple[T, Any]]) -> T:
        store = open_key_store(declared.access.counters, home=settings.home)
        try:
            return (await store.change(decide))[0]
        finally:
            await store.aclose()

    def changed(decide: Callable[[Any], tuple[T, Any]]) -> T:
        try:
            return asyncio.run(run(decide))
        except RequestError as error:
            raise typer.BadParameter(str(error)) from None

    return declared, changed
