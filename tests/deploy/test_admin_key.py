"""COE_ADMIN_KEY_FILE: the key that a container generates on its first start, as docker-compose.yml asks for it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from ruamel.yaml import YAML

from coe.artifacts.api_keys import create_admin_key, with_admin_key
from coe.artifacts.store import ArtifactStore
from coe.errors import ConfigError
from coe.fleet.specs import free_port
from coe.registry import ApiKey
from coe.settings import Settings
from gateway.access.access import Access
from gateway.access.limits import Limiter
from tests import forked
from tests.access.samples import key_of
from tests.admin.samples import router_published, settings_in
from tests.deploy.test_compose import ROOT, services
from tests.fakes import registry_of

FILE = "key/admin"


def settings(folder: Path) -> Settings:
    return Settings.read({"COE_ADMIN_KEY_FILE": str(folder / FILE)}, config=folder / "experts.yaml")


def test_the_first_start_generates_a_key_that_its_owner_alone_can_read_and_the_next_keeps_it(tmp_path: Path) -> None:
    printed = create_admin_key(settings(tmp_path))
    key = (tmp_path / FILE).read_text().strip()
    assert printed is not None
    assert printed.endswith(f"stored in {tmp_path / FILE}: {key}")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert create_admin_key(settings(tmp_path)) is None
    assert (tmp_path / FILE).read_text().strip() == key
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["admin"]


def test_the_key_has_all_scopes_beside_those_that_are_declared(tmp_path: Path) -> None:
    create_admin_key(settings(tmp_path))
    key = (tmp_path / FILE).read_text().strip()
    registry = registry_of(access={"keys": [key_of().model_dump()]})
    found = with_admin_key(registry, settings(tmp_path))
    access = Access(found, Limiter())
    for scope in ("chat", "route", "feedback", "admin", None):
        assert access.identify([(b"x-api-key", key.encode())], scope).key == "admin"
    assert access.identify([(b"x-api-key", b"alice")], "chat").key == "alice"
    assert found.digest == registry.digest
    assert with_admin_key(registry, Settings.read({})) is registry


@pytest.mark.parametrize("declared", [key_of("admin"), key_of(tenant="admin")])
def test_a_declared_key_or_tenant_of_the_same_name_is_refused(tmp_path: Path, declared: ApiKey) -> None:
    create_admin_key(settings(tmp_path))
    with pytest.raises(ConfigError, match="rename the declared one"):
        with_admin_key(registry_of(access={"keys": [declared.model_dump()]}), settings(tmp_path))


@pytest.mark.parametrize("content", ["", "short", "a" * 500, "with a space in between it"])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / FILE).write_text(content)
    assert create_admin_key(settings(tmp_path)) is None
    with pytest.raises(ConfigError, match=f"COE_ADMIN_KEY_FILE='{tmp_path / FILE}'"):
        with_admin_key(registry_of(), settings(tmp_path))


def test_of_several_gateways_that_start_at_once_one_generates_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as each saw it before the others wrote
    printed = [create_admin_key(settings(tmp_path)) for _ in range(3)]
    assert [text is None for text in printed] == [False, True, True]
    assert (tmp_path / FILE).read_text().strip() in str(printed[0])


# ------------------------------------------------------------------------------------------- the files for Docker


def test_the_gateways_keep_their_key_in_a_volume_and_prometheus_reads_it_there() -> None:
    scrape = YAML(typ="safe").load(ROOT / "deploy" / "compose" / "prometheus.yml")["scrape_configs"][0]
    path = scrape["authorization"]["credentials_file"]
    folder = str(Path(path).parent)
    for name in ("gateway", "gateway-api", "gateway-cpu"):
        service = services()[name]
        assert service["environment"]["COE_ADMIN_KEY_FILE"] == path
        assert f"key:{folder}" in service["volumes"]
    assert f"key:{folder}:ro" in services()["prometheus"]["volumes"]
    assert f"install -d -o coe -g coe -m 700 {folder}" in (ROOT / "deploy" / "Dockerfile").read_text()


# ------------------------------------------------------------------------------------------- the command itself


async def status(url: str, key: str | None = None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as response:
        return response.status


@pytest.mark.anyio
async def test_a_container_starts_with_a_key_of_its_own_and_asks_everybody_for_it(tmp_path: Path) -> None:
    """`coe serve` with the environment of the image and of docker-compose.yml."""
    declared, port = settings_in(tmp_path, registry_of()), free_port()
    ArtifactStore(declared.artifacts, "router").promote(router_published(declared, "starter"))
    environ = {"COE_HOST": "0.0.0.0", "COE_PORT": str(port), "COE_CONFIG": str(tmp_path / "experts.yaml")}
    process = await asyncio.create_subprocess_exec(
        *forked.python("tests.deploy.serve_words", "serve"),
        cwd=ROOT,
        env=os.environ | environ | {"COE_ADMIN_KEY_FILE": str(tmp_path / FILE)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    url, is_ready = f"http://127.0.0.1:{port}", False
    try:
        async with asyncio.timeout(60):
            while not is_ready:
                assert process.returncode is None
                with suppress(aiohttp.ClientConnectionError):
                    is_ready = await status(f"{url}/health/ready") == 200
                await asyncio.sleep(0.05)
        key = (tmp_path / FILE).read_text().strip()
        assert await status(f"{url}/metrics") == 401
        assert await status(f"{url}/v1/models", "coe-of-somebody-else") == 401
        assert await status(f"{url}/metrics", key) == 200
        assert await status(f"{url}/v1/artifacts", key) == 200
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
    assert re.findall(r"generated an API key .*: (coe-\S+)$", output.decode(), re.MULTILINE) == [key]
