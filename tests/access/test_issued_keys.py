"""Issued keys: who may issue what, where they are stored, and how soon a revoked one is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from coe.artifacts.api_keys import digest_of
from coe.errors import ConfigError, KeyRefused, StoreError, Unauthorized
from coe.registry import ApiKey, KeySpec, Registry
from gateway.access.access import Access
from gateway.access.issued_keys import (
    MAX_ISSUED,
    MAX_STALE_SECONDS,
    IssuedKeys,
    IssuedKeyWatch,
    KeyStore,
    check_issued,
    in_force,
    issue,
    open_key_store,
    revoke,
)
from gateway.access.limits import Limiter
from gateway.shared_store import SqliteStore
from tests.access.samples import Clock, key_of
from tests.fakes import registry_of
from tests.gateway.served import Served, serving
from tests.waiting import ManualClock

ALL = frozenset({"chat", "route", "feedback", "admin"})
NOW = 1_800_000_000.0
ROOT = key_of("root", scopes=ALL)


def registry_with(*keys: ApiKey) -> Registry:
    found = registry_of()
    return found.model_copy(update={"access": found.access.model_copy(update={"keys": keys})})


REGISTRY = registry_with(ROOT)


def issued(
    spec: dict[str, Any], *, before: IssuedKeys = (), by: ApiKey | None = ROOT, registry: Registry = REGISTRY
) -> IssuedKeys:
    sha256 = digest_of(f"secret of {spec['name']}")
    return issue(registry, before, KeySpec(**spec), sha256=sha256, by=by, by_name="root", now=NOW)[1]


@pytest.mark.parametrize(
    ("creator", "spec", "reason"),
    [
        ({"scopes": {"admin"}}, {"scopes": ["chat"]}, "lacks the scope 'chat'"),
        ({"scopes": ALL, "limits": {"dollars_per_day": 5}}, {}, "restricted"),
        ({"scopes": ALL, "only_local": True}, {}, "restricted"),
        ({"scopes": ALL, "experts": ("coder",)}, {"experts": ["coder"]}, "restricted"),
        ({"scopes": ALL, "expires": datetime(2030, 1, 1, tzinfo=UTC)}, {}, "expires on 2030-01-01"),
        ({"scopes": ALL, "expires": datetime(2030, 1, 1, tzinfo=UTC)}, {"expires": "2030-01-02"}, "expires on 2030"),
        ({"scopes": ALL}, {"experts": ["nobody"]}, "unknown expert 'nobody'"),
        ({"scopes": ALL}, {"name": "root"}, "taken"),
        ({"scopes": ALL}, {"expires": "2020-01-01"}, "in the past"),
    ],
)
def test_no_key_is_issued_with_more_rights_than_its_creator_or_with_a_mistake(
    creator: dict[str, Any], spec: dict[str, Any], reason: str
) -> None:
    with pytest.raises(KeyRefused, match=reason):
        issued({"name": "new", **spec}, by=key_of("creator", **creator))


def test_no_issued_key_has_the_tenant_that_another_key_has_by_default() -> None:
    registry = registry_with(ROOT, key_of("app"), key_of("web", tenant="retail"))
    for spec in ({"name": "thief", "tenant": "app"}, {"name": "retail"}):
        with pytest.raises(KeyRefused, match="would share the tenant"):
            issued(spec, registry=registry)
        keys = issued(spec)  # where these keys are not declared
        assert in_force(registry, keys) == ()
        check_issued(registry, keys, now=NOW)
    first = issued({"name": "a"})
    with pytest.raises(KeyRefused, match="would share the tenant 'a'"):
        issued({"name": "b", "tenant": "a"}, before=first)
    _, revoked = revoke(REGISTRY, first, "a")
    assert issued({"name": "b", "tenant": "a"}, before=revoked)[-1].tenant == "a"  # a new key for the same tenant
    more = issued({"name": "more", "tenant": "retail"}, registry=registry)  # a declared tenant may be shared
    assert in_force(registry, more) == more


def test_the_list_is_bounded_and_expired_keys_make_room() -> None:
    full = tuple(issued({"name": "a"})[0].model_copy(update={"name": f"k{at}"}) for at in range(MAX_ISSUED))
    with pytest.raises(KeyRefused, match="revoke one first"):
        issued({"name": "new"}, before=full)
    expired = full[7].model_copy(update={"expires": datetime.fromtimestamp(NOW - 1, UTC)})
    names = [key.name for key in issued({"name": "new"}, before=(*full[:7], expired, *full[8:]))]
    assert len(names) == MAX_ISSUED
    assert "k7" not in names
    check_issued(registry_with(), (expired,), now=NOW)  # none is in use


def test_issued_keys_without_a_declared_administrator_are_refused_and_never_open_the_gateway() -> None:
    keys = issued({"name": "a", "scopes": ["admin"]})
    for registry in (registry_with(), registry_with(key_of("app"))):
        assert in_force(registry, keys) == ()
        with pytest.raises(ConfigError, match="no declared key has the scope admin"):
            check_issued(registry, keys, now=NOW)
        with pytest.raises(KeyRefused, match="coe key NAME --scope admin"):
            issue(registry, (), KeySpec(name="b"), sha256="0" * 64, by=None, by_name="", now=NOW)
    access = Access(REGISTRY, Limiter(), issued=())
    with pytest.raises(Unauthorized):
        access.identify([], "chat")


def test_a_declared_key_of_the_same_name_or_digest_wins() -> None:
    keys = issued({"name": "a"})
    for declared in (key_of("a", secret="other"), key_of("b", secret="secret of a")):
        assert in_force(registry_with(ROOT, declared), keys) == ()
    assert in_force(REGISTRY, keys) == keys


def test_an_expired_key_is_refused_from_that_second_on_with_its_date() -> None:
    clock = Clock()
    end = datetime.fromtimestamp(int(clock()) + 1000, UTC)
    ring = Access(registry_with(key_of("a", expires=end)), Limiter(), clock=clock)
    sent = [(b"x-api-key", b"a")]
    assert ring.identify(sent, "chat").key == "a"
    clock.ahead = 1001
    with pytest.raises(Unauthorized, match=f"expired on {end:%Y-%m-%d}"):
        ring.identify(sent, "chat")


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], KeyStore]:
    if request.param == "sqlite":
        return lambda: open_key_store("file", home=tmp_path)
    url = request.getfixturevalue("redis_url")
    return lambda: open_key_store(url, home=tmp_path)


@pytest.mark.anyio
async def test_two_administrators_at_once_lose_nothing_and_only_digests_are_stored(
    open_store: Callable[[], KeyStore],
) -> None:
    stores = [open_store(), open_store()]

    async def add(store: KeyStore, name: str) -> None:
        await store.change(lambda before: (None, issued({"name": name}, before=before)))

    await asyncio.gather(*(add(store, f"k{at}-{number}") for at, store in enumerate(stores) for number in range(4)))
    found = await stores[1].read()
    assert len(found) == 8
    assert {key.sha256 for key in found} == {digest_of(f"secret of {key.name}") for key in found}
    for store in stores:
        await store.aclose()


@pytest.mark.anyio
async def test_a_key_that_one_gateway_revokes_is_gone_at_the_next_read_of_another(
    open_store: Callable[[], KeyStore],
) -> None:
    stores = [open_store(), open_store()]
    first, second = map(IssuedKeyWatch, stores)
    await first.change(lambda before: (None, issued({"name": "a"}, before=before)))
    assert in_force(REGISTRY, first.keys)
    await second.refresh()
    assert in_force(REGISTRY, second.keys) == in_force(REGISTRY, first.keys)
    await second.change(lambda before: revoke(REGISTRY, before, "a"))
    await first.refresh()
    assert in_force(REGISTRY, first.keys) == ()
    for store in stores:
        await store.aclose()


def delete(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["deleted", "replaced"])
async def test_a_file_that_is_deleted_or_replaced_under_a_gateway_revives_no_key(tmp_path: Path, what: str) -> None:
    path = tmp_path / "keys.sqlite"

    async def elsewhere(at: Path, name: str) -> None:
        other = KeyStore(SqliteStore(at))
        await other.change(lambda before: (None, issued({"name": name}, before=before)))
        await other.aclose()

    await elsewhere(path, "old")
    store = KeyStore(SqliteStore(path))
    watch = IssuedKeyWatch(store)
    await watch.refresh()
    if what == "deleted":
        delete(tmp_path, "keys.sqlite*")
        await watch.refresh()
        assert watch.keys == ()
        await elsewhere(path, "new")
    else:
        await elsewhere(tmp_path / "backup", "new")
        (tmp_path / "backup").replace(path)
    await watch.refresh()
    assert [key.name for key in watch.keys] == ["new"]
    await watch.change(lambda before: (None, issued({"name": "here"}, before=before)))
    found = await store.read()
    assert [key.name for key in found] == ["new", "here"]
    await store.aclose()


class BrokenStore(KeyStore):
    """Fails once `broken` is set."""

    broken = False

    async def read(self) -> IssuedKeys:
        if self.broken:
            raise StoreError("away")
        return issued({"name": "a"})


@pytest.mark.anyio
async def test_keys_that_cannot_be_read_again_are_kept_for_five_minutes_and_then_refused(tmp_path: Path) -> None:
    store, clock = BrokenStore(SqliteStore(tmp_path / "keys")), ManualClock()
    read = clock.now
    watch = IssuedKeyWatch(store, clock=clock)
    await watch.refresh()
    store.broken = True
    clock.now = read + MAX_STALE_SECONDS - 1
    await watch.refresh()
    assert (len(watch.keys), watch.outage.active) == (1, True)
    clock.now = read + MAX_STALE_SECONDS + 1
    await watch.refresh()
    assert watch.keys == ()
    store.broken = False
    await watch.refresh()
    assert (len(watch.keys), watch.outage.active) == (1, False)


SECRET = "root-secret-of-the-test"
DECLARED = [
    {"name": "root", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "scopes": sorted(ALL)},
    {"name": "app", "sha256": hashlib.sha256(b"app-secret").hexdigest()},
]


@asynccontextmanager
async def requesting(served: Served, path: str, key: str, method: str = "GET", **more: Any) -> AsyncIterator[Any]:
    headers = {"x-api-key": key, "connection": "close"}
    async with served.client.request(method, f"{served.url}{path}", headers=headers, **more) as response:
        yield response


async def post(served: Served, key: str, **spec: Any) -> tuple[int, Any]:
    async with requesting(served, "/v1/keys", key, "POST", json=spec) as response:
        return response.status, await response.json()


async def listed(served: Served) -> list[tuple[str, bool, bool]]:
    """The listed keys: name, whether declared, whether in use."""
    async with requesting(served, "/v1/keys", SECRET) as response:
        return [(key["name"], key["declared"], key["in_use"]) for key in (await response.json())["data"]]


async def until_status(served: Served, key: str, status: int) -> None:
    """Wait until all of twenty concurrent requests, which spread over both workers, have this status."""

    async def found() -> int:
        async with served.send_chat("good", headers={"x-api-key": key}) as response:
            return response.status

    async with asyncio.timeout(60):
        while set(await asyncio.gather(*(found() for _ in range(20)))) != {status}:
            await asyncio.sleep(0.05)


@pytest.mark.anyio
async def test_a_key_is_issued_used_by_all_workers_and_revoked_even_while_experts_yaml_is_broken(
    tmp_path: Path,
) -> None:
    access = {"keys": DECLARED}
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}, access=access) as served:
        assert (await post(served, "app-secret", name="x"))[0] == 403
        assert (await post(served, "nobody", name="x"))[0] == 401
        foreign = {"x-api-key": SECRET, "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        async with served.client.post(f"{served.url}/v1/keys", json={"name": "x"}, headers=foreign) as response:
            assert response.status == 403
        _, found = await post(served, SECRET, name="shop", tenant="retail", scopes=["chat"])
        key = found["key"]
        assert (key["tenant"], key["created_by"], key["in_use"]) == ("retail", "root", True)
        await until_status(served, found["secret"], 200)
        assert found["secret"].encode() not in (tmp_path / ".coe" / "api-keys.sqlite").read_bytes()
        served.declare("version: 1\nexperts: [")
        async with requesting(served, "/v1/keys/shop", SECRET, "DELETE") as response:
            assert (await response.json())["name"] == "shop"
        expected = [("root", True, True), ("app", True, True)]
        assert await asyncio.gather(*(listed(served) for _ in range(20))) == [expected] * 20  # by both workers, at once
        await until_status(served, found["secret"], 401)
        served.declare()
        async with requesting(served, "/v1/keys/app", SECRET, "DELETE") as response:
            message = (await response.json())["error"]["message"]
        assert "declared in experts.yaml" in message
        assert await listed(served) == expected
