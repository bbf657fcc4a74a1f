"""Checks of access control before a port opens, and `coe key`, which fixes what they report."""

import hashlib
from functools import partial
from pathlib import Path

import orjson
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import ConfigError
from coe.registry import AccessSpec, ApiKey, KeyLimits, KeySpec, load
from coe.settings import Settings
from gateway.access.access import check_exposure
from gateway.access.issued_keys import issue, open_key_store
from gateway.main import open_services
from tests.access.samples import key_of
from tests.fakes import registry_of
from tests.gateway import words_server
from tests.gateway.test_main import settings_of

KEYED = AccessSpec(keys=(key_of(limits={"requests_per_minute": 1}),))


def listening(host: str, **environ: str) -> Settings:
    return Settings.read({"COE_HOST": host, **environ})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(listening(host), AccessSpec())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "0"])
def test_beyond_loopback_without_keys_is_refused_with_both_remedies(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_exposure(listening(host), AccessSpec())
    for remedy in ("COE_HOST=127.0.0.1", "access.keys"):
        assert remedy in str(refused.value)
    with pytest.raises(ConfigError):  # no variable opens it
        check_exposure(listening(host, COE_OPEN="1"), AccessSpec())
    check_exposure(listening(host), KEYED)


def test_a_wrong_address_of_redis_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"access\.counters: not a Redis address") as refused:
        open_key_store("redis://:se/cret@localhost:6379/0", home=Path())
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_commands_refuse_before_anything_starts(tmp_path: Path, command: str) -> None:
    settings = settings_of(tmp_path)
    result = CliRunner().invoke(app, [command, "--host", "0.0.0.0", "--config", str(settings.config)])
    assert isinstance(result.exception, ConfigError)
    assert "access.keys" in str(result.exception)
    assert not settings.logs.exists()


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["key", *words])
    assert result.exit_code == code, result.output
    return result.stdout


def test_coe_key_prints_a_key_and_the_entry_that_declares_it(tmp_path: Path) -> None:
    key, _, text = run("no", "--tenant", "1e3", "--scope", "chat", "--scope", "admin").partition("\n")
    declared = YAML(typ="safe").load(text[text.index("access:") :])
    (entry,) = AccessSpec.model_validate(declared["access"]).keys
    assert key.startswith("coe-")
    assert len(key) == 47
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert (entry.name, entry.tenant, entry.scopes) == ("no", "1e3", {"chat", "admin"})
    assert key not in text


@pytest.mark.parametrize(
    "words", [("bad name",), ("ci", "--scope", "root"), ("ci", "--tenant", "a b"), ("ci", "--limit", "x")]
)
def test_coe_key_refuses_what_experts_yaml_would(words: tuple[str, ...]) -> None:
    run(*words, code=2)


@pytest.mark.anyio
async def test_a_start_and_a_reload_know_the_issued_keys_of_the_store(tmp_path: Path) -> None:
    def settings_with(*declared: ApiKey) -> Settings:
        registry = registry_of(access=AccessSpec(keys=declared))
        (tmp_path / "experts.yaml").write_bytes(orjson.dumps(registry.model_dump(mode="json", exclude_none=True)))
        return Settings.read({}, config=tmp_path / "experts.yaml")

    async def refused(settings: Settings, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            async with open_services(settings, read=words_server.read):
                pass

    root = key_of("root", scopes={"admin", "chat"})
    settings = settings_with(root)
    store = open_key_store("file", home=settings.home)
    spec = KeySpec(name="shop", scopes=frozenset({"chat"}), limits=KeyLimits(requests_per_minute=1))
    make = partial(issue, load(settings.config, environ={}), spec=spec, sha256="0" * 64, by=root, now=0.0)
    await store.change(lambda issued: make(issued=issued))
    await store.aclose()
    await refused(settings_with(key_of("app")), "no declared key has the scope admin")
    async with open_services(settings_with(root), read=words_server.read) as parts:
        assert parts.reload is not None
        parts.reload.check(load(settings.config, environ={}))
        registry = parts.snapshot.registry
        access = registry.access.model_copy(update={"keys": (key_of("app"),)})
        with pytest.raises(ConfigError, match="scope admin"):
            parts.reload.check(registry.model_copy(update={"access": access}))
