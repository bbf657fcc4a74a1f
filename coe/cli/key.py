"""`coe key`: makes an API key, for experts.yaml or in use at once (`--issue`); lists and revokes issued keys.

Issued keys are stored beside the usage counters (`access.counters`); gateways apply changes within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from coe.cli.common import Config, Json, print_result, settings_for
from coe.registry import ApiKey, KeySpec, Registry

T = TypeVar("T")

Name = Annotated[str | None, typer.Argument(help="Name that logs and records show instead of the key.")]
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
    name: Name = None,
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

    With `--issue` the key is in use at once, without an entry in experts.yaml, and `--revoke` ends that. Without a
    name, the declared and issued keys are listed.
    """
    if name is None:
        if issue or revoke:
            raise typer.BadParameter("name the key", param_hint="NAME")
        _list(config, json=json)
        return
    if revoke:
        _revoke(config, name, json=json)
        return
    fields = {"name": name, "tenant": tenant, "scopes": scope, "experts": expert, "expires": expires}
    entry: dict[str, Any] = {field: value for field, value in fields.items() if value}
    if only_local:
        entry["only_local"] = True
    if limit:
        entry["limits"] = _limits(limit)
    spec = _checked(entry)
    if issue:
        _issue(config, spec, json=json)
    else:
        _print_entry(entry, json=json)


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


def _checked(entry: Mapping[str, Any]) -> KeySpec:
    try:
        return KeySpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise typer.BadParameter(f"{place}: {first['msg']}") from None


def _print_entry(entry: dict[str, Any], *, json: bool) -> None:
    from coe.artifacts.api_keys import digest_of, new_key

    new = new_key()
    name, *rest = {**entry, "sha256": digest_of(new)}.items()
    head = "Pass it to its user; it cannot be shown again. In experts.yaml:"
    lines = [f"      {field}: {_yaml(value)}" for field, value in rest]
    text = "\n".join([new, "", head, "", "access:", "  keys:", f"    - name: {_yaml(name[1])}", *lines])
    print_result({"key": new, "entry": dict([name, *rest])}, text, json=json)


def _yaml(value: Any) -> str:
    """Texts are quoted, since YAML reads some as numbers or booleans."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {number}' for name, number in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _issue(config: Any, spec: KeySpec, *, json: bool) -> None:
    from coe.artifacts.api_keys import digest_of, new_key
    from gateway.access.issued_keys import issue

    new = new_key()
    registry, changed = _opened(config)
    made = changed(
        lambda issued: issue(registry, issued, spec, sha256=digest_of(new), by=None, by_name=BY, now=time.time())
    )
    note = f"Pass it to its user; it cannot be shown again.\nIt is in use until `coe key {made.name} --revoke`."
    print_result({"key": new, "issued": _shown(made)}, f"{new}\n\n{note}", json=json)


def _revoke(config: Any, name: str, *, json: bool) -> None:
    from gateway.access.issued_keys import revoke

    registry, changed = _opened(config)
    revoked = changed(lambda issued: revoke(registry, issued, name, by_name=BY, now=time.time()))
    line = f"{name}: revoked; running gateways refuse it within a second"
    print_result({"revoked": _shown(revoked)}, line, json=json)


def _list(config: Any, *, json: bool) -> None:
    from gateway.access.issued_keys import is_over

    registry, changed = _opened(config)
    issued = changed(lambda found: (found, found))
    lines = (
        f"{one.name}: {_state(one, over=is_over(one, time.time()))}, {', '.join(sorted(one.scopes))}"
        for one in (*registry.access.keys, *issued)
    )
    kinds = {"declared": registry.access.keys, "issued": issued}
    print_result({kind: [_shown(one) for one in keys] for kind, keys in kinds.items()}, lines, json=json)


def _shown(one: ApiKey) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude={"sha256"})


def _state(one: ApiKey, *, over: bool) -> str:
    from gateway.access.issued_keys import IssuedKey, date_of

    if not isinstance(one, IssuedKey):
        return "declared"
    if one.revoked is not None:
        return f"revoked by {one.revoked_by}"
    until = f" until {date_of(one.expires)}" if one.expires else ""
    return "expired" if over else f"issued by {one.created_by}{until}"


def _opened(config: Any) -> tuple[Registry, Callable[[Callable[[Any], tuple[T, Any]]], T]]:
    """The declaration with the administrator's key, and a function that changes the stored keys."""
    from coe import registry
    from coe.artifacts.api_keys import with_admin_key
    from coe.errors import RequestError
    from gateway.access.key_store import change, open_key_store

    settings = settings_for(config)
    declared = with_admin_key(registry.load(settings.config, environ=settings.environ), settings)

    def changed(decide: Callable[[Any], tuple[T, Any]]) -> T:
        async def run() -> T:
            store = open_key_store(declared.access.counters, home=settings.home)
            try:
                return (await change(store, decide))[0]
            finally:
                await store.aclose()

        try:
            return asyncio.run(run())
        except RequestError as error:
            raise typer.BadParameter(str(error)) from None

    return declared, changed
