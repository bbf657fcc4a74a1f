"""experts.yaml over the network: who may edit it, what is refused, and that it is replaced in one step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import ConfigError, ConfigRefused, Overloaded
from coe.registry import Registry, yaml_source
from coe.runtime.declaration_edit import (
    BACKUP,
    MAX_DIFF_CHARACTERS,
    MAX_TEXT_BYTES,
    check_candidate,
    diff_of,
    read_text,
    replace_declaration,
    secret_problems,
    tag_of,
    without_values,
)
from coe.settings import Settings
from gateway.endpoints.admin.serial import MAX_WAITING, Serial
from tests.access.test_issued_keys import DECLARED, SECRET, post, requesting, until_status
from tests.gateway.served import Served, serving
from tests.gateway.test_reload import wait_until_status

TEXT = """version: 1
categories: [{name: general, description: any}]
experts:
  - name: good
    model: m
    runtime: external
    base_url: http://127.0.0.1:9/v1
    api_key: ${GOOD_KEY}
assignment: {general: good}
"""
VALUE = "the-value-of-GOOD_KEY"


def problems_of(tmp_path: Path, text: str, current: str = TEXT) -> tuple[str, ...]:
    environ = {"COE_CONFIG": str(tmp_path / "experts.yaml"), "GOOD_KEY": VALUE, "OTHER": "the-other-secret"}

    def check(registry: Registry) -> None:
        if registry.policy.max_attempts == 7:
            raise ConfigError("a change of this needs a restart")

    return check_candidate(text, current, Settings.read(environ), check=check).problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("model: m", "modell: m", "experts.yaml:5: unknown key 'modell'; did you mean 'model'?"),
        ("${GOOD_KEY}", "sk-literal", "experts.yaml:8: this is a literal key or password"),
        (
            "model: m",
            "model: m\n    parameters: {aws_secret_access_key: AKIA}",
            "experts.yaml:6: this is a literal key",
        ),
        ("${GOOD_KEY}", "${OTHER}", "experts.yaml:8: the variable OTHER is new"),
        ("127.0.0.1:9", "${OTHER}.evil.example", "experts.yaml:7: the variable OTHER is new"),
        ("general: good}", "general: nobody}", "experts.yaml:9: unknown expert 'nobody'"),
        ("version: 1", "version: 1\nlog: {url: 'redis://:pass@h/0'}", "experts.yaml:2: this is a literal key"),
        ("version: 1", "version: 1\npolicy: {max_attempts: 7}", "a change of this needs a restart"),
        ("version: 1", "version: [", "experts.yaml:"),
    ],
)
def test_problems_have_line_and_remedy(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert not problems_of(tmp_path, TEXT)
    found = problems_of(tmp_path, TEXT.replace(old, new))
    assert found
    assert any(one.startswith(problem) for one in found), found


def test_values_of_variables_are_not_in_problems(tmp_path: Path) -> None:
    text = TEXT.replace("runtime: external", "runtime: ${GOOD_KEY}")
    found = "\n".join(problems_of(tmp_path, text))
    assert "runtime" in found
    assert VALUE not in found


def test_values_are_removed_where_a_problem_quotes_or_shortens_them() -> None:
    environ = {"LONG": "l" * 90 + "end", "QUOTES": "it's \\ \n a secret", "OTHER": "stays", "PART": "llll"}
    text = "${LONG} os.environ/QUOTES ${PART}"
    problem = f"not {environ['LONG'][:64]!r}, {environ['LONG']}, {environ['QUOTES']!r} or 'stays'"
    assert without_values(problem, text, environ) == "not '${LONG}', ${LONG}, \"${QUOTES}\" or 'stays'"


def test_a_diff_is_bounded() -> None:
    assert diff_of("a", "b", "f").endswith("-a\n+b")
    assert len(diff_of("a\n" * 50_000, "b\n" * 50_000, "f")) < MAX_DIFF_CHARACTERS + 50


@pytest.mark.anyio
async def test_work_of_callers_that_left_still_runs_alone_and_counts() -> None:
    serial, free, running, most = Serial(), threading.Event(), 0, 0

    def work() -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        free.wait(5)
        running -= 1

    callers = [asyncio.ensure_future(serial.run(work)) for _ in range(MAX_WAITING)]
    while not running:
        await asyncio.sleep(0.001)
    callers[0].cancel()
    await asyncio.gather(callers[0], return_exceptions=True)
    with pytest.raises(Overloaded):
        await serial.run(work)
    free.set()
    await asyncio.gather(*callers[1:])
    assert most == 1
    await serial.run(work)


def test_a_comment_makes_no_variable_usable_by_the_next_edit(tmp_path: Path) -> None:
    with_comment = TEXT + "# ${OTHER}\n"
    assert not problems_of(tmp_path, with_comment)
    found = problems_of(tmp_path, with_comment.replace("127.0.0.1:9", "${OTHER}.evil.example"), with_comment)
    assert found == ("experts.yaml:7: the variable OTHER is new; add it to the file on the gateway's machine",)


def test_a_variable_in_the_notation_of_litellm_can_be_saved_again(tmp_path: Path) -> None:
    text = TEXT.replace("${GOOD_KEY}", "os.environ/GOOD_KEY")
    assert not problems_of(tmp_path, text, text)


def test_a_text_is_measured_in_bytes_as_the_file_is(tmp_path: Path) -> None:
    long = TEXT + "# " + "é" * (MAX_TEXT_BYTES // 2)
    assert len(long) < MAX_TEXT_BYTES
    assert problems_of(tmp_path, long) == ("experts.yaml:1: more than 128 KiB; edit the file where it is",)


def secrets_in(text: str) -> list[str]:
    return [*secret_problems(text, yaml_source.parse(text, "f"))]


@pytest.mark.parametrize(
    "text",
    [
        "# api_key: sk-live",
        "a: 1  # options: {api-key: 'sk-live'}",
        "# url: redis://:pass@h/0",
        "a: {options: {api-key: [sk-live]}}",
        "experts: [{parameters: {extra_headers: {X-Auth-Token: live}}}]",
        "experts: [{parameters: {password: 12345}}]",
        "log: {url: 'redis://h/0?password=pass'}",
        "log: {url: 'redis://h/0?db=1&password=pass'}",
        "a: https://h/v1?api-version=1&key=live",
        "a: https://token@h/",
        "a: {authorization: Bearer live}",
    ],
)
def test_a_literal_secret_is_recognised_also_in_comments_addresses_and_options(text: str) -> None:
    assert len(secrets_in(text)) == 1


def test_variables_and_ordinary_values_are_no_secret() -> None:
    text = """log: {url: 'redis://user:${PASSWORD}@h/0', other: 'redis://h/0', address: 'http://h/v1?api-version=2024-10-21'}
experts: [{parameters: {max_tokens: 5, extra_headers: {authorization: 'Bearer ${KEY}'}}, api_key: os.environ/KEY}]
# api_key: ${KEY}, and redis://:${PASSWORD}@h/0; https://h/v1?token=${KEY}. Digests are in access.keys: nothing else
"""
    assert not secrets_in(text)
    for path in (Path("experts.yaml"), *Path("examples").glob("*.yaml")):
        assert not secrets_in(path.read_text()), path


def test_a_text_is_replaced_once_for_each_tag_with_one_backup_and_its_permissions(tmp_path: Path) -> None:
    config = tmp_path / "experts.yaml"
    config.write_text("first")
    config.chmod(0o600)
    settings = Settings.read({"COE_CONFIG": str(config)})
    tag = tag_of(b"first")
    assert replace_declaration(settings, "second", expected=tag) == tag_of(b"second")
    assert (config.read_text(), config.stat().st_mode & 0o777) == ("second", 0o600)
    assert (settings.home / BACKUP).read_text() == "first"
    with pytest.raises(ConfigRefused, match="changed in the meantime"):
        replace_declaration(settings, "third", expected=tag)
    assert config.read_text() == "second"
    config.write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    with pytest.raises(ConfigRefused, match="128 KiB"):
        read_text(config)


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(
        tmp_path_factory.mktemp("served"), environ={"GOOD_KEY": VALUE}, access={"keys": DECLARED}
    ) as served:
        yield served


async def read(served: Served) -> dict[str, Any]:
    async with requesting(served, "/v1/config", SECRET) as response:
        assert response.status == 200, await response.text()
        return {**await response.json(), "header": response.headers["etag"]}


async def put(served: Served, text: str, tag: str, key: str = SECRET) -> tuple[int, Any]:
    headers = {"x-api-key": key, "if-match": f'"{tag}"'}
    async with served.client.put(f"{served.url}/v1/config", json={"text": text}, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.anyio
async def test_a_new_text_is_checked_saved_and_served_and_an_outdated_edit_is_refused(served: Served) -> None:
    found = await read(served)
    assert (found["in_force"], found["read_only"], found["header"]) == (True, "", f'"{found["etag"]}"')
    before = (await served.ready())["config"]
    text = orjson.dumps(orjson.loads(found["text"]) | {"policy": {"cost_weight": 0.5}}).decode()
    async with requesting(served, "/v1/config/check", SECRET, "POST", json={"text": text}) as response:
        checked = await response.json()
    assert (checked["ok"], checked["problems"]) == (True, [])
    assert "+" + text in checked["diff"].splitlines()
    assert (await put(served, '{"version": 2}', found["etag"]))[1]["error"]["code"] == "config_invalid"
    assert (await put(served, text, found["etag"]))[0] == 200
    assert (await put(served, found["text"], found["etag"]))[0] == 409
    async with asyncio.timeout(60):
        while (await served.ready())["config"] == before:
            await asyncio.sleep(0.02)
    assert (await read(served))["in_force"]


@pytest.mark.anyio
async def test_only_an_unrestricted_administrator_reads_or_writes_it(served: Served) -> None:
    every = ["admin", "chat", "feedback", "route"]
    _, limited = await post(served, SECRET, name="limited", scopes=every, limits={"requests_per_minute": 600})
    _, partly = await post(served, SECRET, name="partly", scopes=["admin"])
    tag = (await read(served))["etag"]
    for key in (limited["secret"], partly["secret"], "app-secret"):
        async with requesting(served, "/v1/config", key) as response:
            assert response.status == 403
        assert (await put(served, "{}", tag, key))[0] == 403
    _, whole = await post(served, SECRET, name="whole", scopes=every)
    await until_status(served, whole["secret"], 200)
    async with requesting(served, "/v1/config", whole["secret"]) as response:
        assert response.status == 200


@pytest.mark.anyio
async def test_a_file_that_is_not_in_force_or_read_only_is_not_replaced(served: Served) -> None:
    found = await read(served)
    broken = found["text"].replace('"general":"good"', '"general":"${GOOD_KEY}"')
    served.declare(broken)
    await wait_until_status(served, reload_error=True)
    now = await read(served)
    assert (now["in_force"], "unknown expert '${GOOD_KEY}'" in now["reload_error"]) == (False, True)
    status, refused = await put(served, found["text"], now["etag"])
    assert (status, "not the one in force" in refused["error"]["message"]) == (409, True)
    assert VALUE not in str(now) + str(refused)
    served.declare(found["text"])
    await wait_until_status(served, reload_error=False)
