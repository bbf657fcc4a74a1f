"""The OpenAPI document, and whether the gateway conforms to it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import orjson
import pytest
from starlette.routing import Route

from coe.fleet.specs import free_port
from gateway.endpoints import chat, pass_through
from gateway.endpoints.operations import OPERATIONS, document
from gateway.observability.tracing import PATHS
from tests import forked
from tests.access.samples import key_of
from tests.fakes import gateway_of, registry_of
from tests.observability.keyed_server import declared

ROOT = Path(__file__).parent.parent.parent
KEY = "coe-canary"
CONFIG = """\
suppress-health-check = ["too_slow"]

[generation]
allow-extra-parameters = false
deterministic = true
mode = "all"
max-examples = 5

[checks]
max_response_time = 60.0

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
"""Unknown headers and fields are never wrong, and a millisecond is a valid timeout. Times are those of the
machine, so that only a request without an answer in a minute fails."""


@pytest.mark.anyio
async def test_every_endpoint_is_in_the_document_and_nothing_else() -> None:
    async with gateway_of() as gateway:
        answer = await gateway.post("/openapi.json", method="GET")
        found = [route for route in gateway.app.routes if isinstance(route, Route) and route.include_in_schema]
        routes = {route.path.replace(":path", ""): route.methods for route in found}
    paths = answer.json["paths"]
    assert set(paths) == set(routes)
    for path, operations in paths.items():
        methods = {method.upper() for method in operations}
        assert methods == ((routes[path] or methods) - {"HEAD"})


def test_traces_name_the_paths_that_there_are() -> None:
    assert {
        one.resource.keywords["dialect"].api: one.path for one in (*chat.OPERATIONS, *pass_through.OPERATIONS)
    } == PATHS


def test_security_is_stated_only_where_keys_are_declared() -> None:
    free, keyed = document(registry_of()), document(declared(KEY))
    assert "securitySchemes" not in free["components"]
    assert set(keyed["components"]["securitySchemes"]) == {"bearer", "apiKey", "azureKey"}
    for path, operation in ((path, one) for path, item in keyed["paths"].items() for one in item.values()):
        assert ("security" in operation) != (path in ("/", "/health", "/health/live", "/health/ready", "/openapi.json"))
    assert KEY not in orjson.dumps(keyed).decode()


SCOPES = ("chat", "route", "feedback", "admin")


@pytest.mark.anyio
async def test_every_operation_accepts_keys_with_its_scope_alone() -> None:
    keys = [key_of(scope, scopes=(scope,)).model_dump(mode="json") for scope in SCOPES]
    async with gateway_of(registry_of(access={"keys": keys})) as gateway:
        for one in OPERATIONS:
            path = one.path.replace(":path", "").replace("{", "").replace("}", "")
            accepted = set()
            for scope in (None, *SCOPES):
                headers = {"content-type": "application/json"} | ({} if scope is None else {"x-api-key": scope})
                answer = await gateway.post(path, b"{", method=one.method, headers=headers, query="events=1")
                if answer.status not in (401, 403):
                    accepted.add(scope)
            everyone = {"public": {None, *SCOPES}, "any_key": set(SCOPES)}
            assert accepted == everyone.get(one.scope, {one.scope}), one.name


def test_the_limits_of_headers_are_those_declared() -> None:
    published = document(registry_of(policy={"cost_weight_limits": [0.25, 0.5]}))
    cost_weight = published["components"]["parameters"]["CostWeight"]["schema"]
    assert (cost_weight["minimum"], cost_weight["maximum"]) == (0.25, 0.5)


@contextmanager
def served(key: str) -> Iterator[str]:
    port = free_port()
    command = forked.python("tests.observability.keyed_server", str(port), key)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urlopen(f"{url}/health/ready"):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the gateway ended at its start")


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["examples,coverage", "fuzzing"])
def test_schemathesis_finds_nothing(tmp_path: Path, phases: str) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.observability.hooks"}
    with served(KEY) as url:
        command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", "--checks", "all"]
        command += ["--request-timeout", "60", "--phases", phases, "--no-color"]
        command += ["--header", f"Authorization: Bearer {KEY}"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"Tested: {len(OPERATIONS) - 1}" in done.stdout  # all but the document's own
