"""experts.yaml over the network: shown without keys, and a changed text checked without a look into the environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from coe.registry.yaml_source import without_values
from gateway.endpoints.admin.config import MAX_TEXT_BYTES, shown_text
from tests.access.test_issued_keys import DECLARED, SECRET, requesting
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
policy: {max_attempts: 1}
assignment: {general: good}
access:
  keys:
"""
VALUE, OTHER = "the-value-of-GOOD_KEY", "the-other-secret"


def test_values_are_removed_where_a_problem_quotes_or_shortens_them() -> None:
    environ = {"LONG": "l" * 90 + "end", "QUOTES": "it's \\ \n a secret", "OTHER": "stays", "PART": "llll"}
    text = "${LONG} os.environ/QUOTES ${PART}"
    problem = f"not {environ['LONG'][:64]!r}, {environ['LONG']}, {environ['QUOTES']!r} or 'stays'"
    assert without_values(problem, text, environ) == "not '${LONG}', ${LONG}, \"${QUOTES}\" or 'stays'"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("api_key: sk-live", "api_key: ***"),
        ("{api_key: 'sk-live', model: m}", "{api_key: '***', model: m}"),
        ('{"api_key":"sk-live","model":"m"}', '{"api_key":"***","model":"m"}'),
        ("# api_key: sk-live # old", "# api_key: *** # old"),
        ("api_key: ${KEY}", "api_key: ${KEY}"),
        ("api_key: os.environ/KEY", "api_key: os.environ/KEY"),
    ],
)
def test_a_literal_key_is_not_shown(written: str, shown: str) -> None:
    assert shown_text(written.encode()) == shown


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    environ = {"GOOD_KEY": VALUE, "OTHER": OTHER}
    async with serving(tmp_path_factory.mktemp("served"), environ=environ, access={"keys": DECLARED}) as served:
        served.declare(declaration())
        yield served


def declaration() -> str:
    return TEXT + "".join(f"    - {orjson.dumps(key).decode()}\n" for key in DECLARED)


async def read(served: Served) -> dict[str, Any]:
    async with requesting(served, "/v1/config", SECRET) as response:
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


async def check(served: Served, text: str) -> dict[str, Any]:
    async with requesting(served, "/v1/config/check", SECRET, "POST", json={"text": text}) as response:
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


@pytest.mark.anyio
async def test_a_changed_text_is_checked_and_compared_with_the_file_which_stays(served: Served) -> None:
    found = await read(served)
    assert (found["text"], found["reload_error"]) == (declaration(), None)
    text = found["text"].replace("max_attempts: 1", "cost_weight: 0.5")
    checked = await check(served, text)
    assert (checked["ok"], checked["problems"]) == (True, [])
    assert {"-policy: {max_attempts: 1}", "+policy: {cost_weight: 0.5}"} < {*checked["diff"].splitlines()}
    assert await read(served) == found


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("model: m", "modell: m", 5, "unknown key 'modell'; did you mean 'model'?"),
        ("general: good}", "general: nobody}", 10, "unknown expert 'nobody'"),
        ("${GOOD_KEY}", "${UNSET}", 8, "environment variable UNSET is not set"),
        ("version: 1", "version: 1\nlog: {keep_days: 3}", None, "log.keep_days: a change of this needs a restart"),
        ("version: 1", "version: [", 3, "expected"),
    ],
)
async def test_problems_have_line_and_remedy(
    served: Served, old: str, new: str, line: int | None, problem: str
) -> None:
    checked = await check(served, declaration().replace(old, new, 1))
    assert not checked["ok"]
    assert any(one["line"] == line and problem in one["message"] for one in checked["problems"]), checked


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["GOOD_KEY", "OTHER"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("runtime: external", "runtime: %s"),
        ("{general: good}", "{general: %s}"),
        ("assignment:", "policy: {cost_weight_limits: [%s]}\nassignment:"),
        ("experts:", "experts:\n  - {name: 'x%s', model: m, runtime: external, base_url: 'http://h/v1'}"),
        ("http://127.0.0.1:9/v1", "%s"),
    ],
)
async def test_a_checked_text_reads_no_variable(served: Served, name: str, old: str, new: str) -> None:
    checked = await check(served, declaration().replace(old, new % f"${{{name}}}", 1))
    assert VALUE not in str(checked)
    assert OTHER not in str(checked)


@pytest.mark.anyio
async def test_a_file_that_is_not_served_is_shown_with_the_reason_and_a_large_one_is_not(served: Served) -> None:
    served.declare(declaration().replace("general: good}", "general: '${GOOD_KEY}'}"))
    await wait_until_status(served, reload_error=True)
    found = await read(served)
    assert "unknown expert '${GOOD_KEY}'" in found["reload_error"]
    assert VALUE not in str(found)
    served.declare(declaration() + "#" * MAX_TEXT_BYTES)
    async with requesting(served, "/v1/config", SECRET) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (409, "config_refused")
    served.declare(declaration())
    await wait_until_status(served, reload_error=False)
