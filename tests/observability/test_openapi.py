"""The OpenAPI document, and whether the gateway conforms to it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.request import urlopen

import orjson
import pytest
from pydantic import BaseModel
from starlette.routing import Route

from coe.core import Purpose, RetrievalMode
from coe.errors import CAUSES
from coe.fleet.specs import free_port
from coe.records.record import RECORD
from coe.registry import KeySpec
from gateway.endpoints.admin import records
from gateway.endpoints.admin.artifacts import PromoteRequest, RollbackRequest
from gateway.endpoints.admin.config import ConfigText
from gateway.endpoints.admin.records import RecordQuery, ReportQuery
from gateway.endpoints.documents import DocumentLocation, DocumentPage, PassageQuery, Upload
from gateway.endpoints.feedback import FeedbackRequest
from gateway.endpoints.routes import document
from tests import forked
from tests.access.samples import key_of
from tests.fakes import gateway_of, registry_of

ROOT = Path(__file__).parent.parent.parent
KEY = "coe-canary"
CONFIG = """\
suppress-health-check = ["too_slow"]

[generation]
allow-extra-parameters = false
deterministic = true
mode = "all"
max-examples = 3

[checks]
max_response_time = 60.0

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
"""Unknown headers and fields are never wrong, and a millisecond is a valid timeout. Times are those of the
machine, so that only a request without an answer in a minute fails."""


BODIES: dict[str, type[BaseModel]] = {
    "ConfigText": ConfigText,
    "FeedbackRequest": FeedbackRequest,
    "KeySpec": KeySpec,
    "PassageQuery": PassageQuery,
    "PromoteRequest": PromoteRequest,
    "RollbackRequest": RollbackRequest,
    "Upload": Upload,
}
QUERIES: dict[str, type[BaseModel]] = {
    "listDocuments": DocumentPage,
    "deleteDocument": DocumentLocation,
    "readReport": ReportQuery,
    "listRecords": RecordQuery,
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each entry of the document."""
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


@pytest.mark.anyio
async def test_the_document_describes_every_route_and_nothing_else() -> None:
    async with gateway_of() as gateway:
        answer = await gateway.post("/openapi.json", method="GET")
        routes = [one for one in gateway.app.routes if isinstance(one, Route) and not one.path.startswith("/ui")]
    assert answer.json == document()
    described = set()
    for path, method, operation in operations():
        also = re.findall("`(.*?)`", operation.get("description", ""))
        described |= {(one, method) for one in (path, *also)}
    served = {(one.path.replace(":path", ""), method) for one in routes for method in one.methods or ()}
    assert described == {(path, method) for path, method in served if method != "HEAD"}


def test_each_operation_has_a_name_of_its_own_and_every_component_is_used() -> None:
    names = [operation["operationId"] for *_, operation in operations()]
    assert len(set(names)) == len(names)
    components = document()["components"]
    declared = {f"#/components/{section}/{name}" for section, found in components.items() for name in found}
    used = set(re.findall(r'"\$ref":"(.*?)"', orjson.dumps(document()).decode()))
    assert used == {one for one in declared if "/securitySchemes/" not in one}


@pytest.mark.parametrize("name", BODIES)
def test_the_document_agrees_with_the_models_of_bodies(name: str) -> None:
    schema = BODIES[name].model_json_schema(ref_template="#/components/schemas/{model}")
    for part, found in {name: schema, **schema.get("$defs", {})}.items():
        written = document()["components"]["schemas"][part]
        assert constraints(written["properties"]) == constraints(found["properties"]), part
        assert written.get("required") == found.get("required"), part
        assert written["additionalProperties"] is found["additionalProperties"] is False


@pytest.mark.parametrize("name", QUERIES)
def test_the_document_agrees_with_the_models_of_queries(name: str) -> None:
    schema = QUERIES[name].model_json_schema()
    (parameters,) = (one["parameters"] for *_, one in operations() if one["operationId"] == name)
    written = {one["name"]: one["schema"] for one in parameters if one.get("in") == "query"}
    assert constraints(written) == {key: without_null(one) for key, one in constraints(schema["properties"]).items()}
    required = [one["name"] for one in parameters if one.get("in") == "query" and one["required"]]
    assert required == schema.get("required", [])


def constraints(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties without their texts, and without defaults that are null."""
    texts = ("title", "description")
    return {
        name: {key: one for key, one in found.items() if key not in texts and (key, one) != ("default", None)}
        for name, found in properties.items()
    }


def without_null(found: dict[str, Any]) -> dict[str, Any]:
    """A query string has no null."""
    return next((one for one in found.get("anyOf", ()) if one != {"type": "null"}), found)


def test_the_document_names_the_words_of_the_code() -> None:
    components = document()["components"]
    parameters = {name: one["schema"].get("enum") for name, one in components["parameters"].items()}
    assert parameters["Retrieval"] == list(get_args(RetrievalMode))
    assert parameters["Purpose"] == list(get_args(Purpose))
    assert components["headers"]["Cause"]["schema"]["enum"] == list(CAUSES)
    assert components["schemas"]["Decision"]["properties"]["cause"]["enum"] == ["", *CAUSES]


def test_the_document_agrees_with_the_fields_of_records() -> None:
    schemas, model = document()["components"]["schemas"], RECORD.adapter.json_schema(mode="serialization")
    record, row = schemas["Record"], schemas["RecordList"]["properties"]["data"]["items"]
    for fields, schema in ((records.RECORD_FIELDS, record), (records.LIST_FIELDS, row)):
        assert schema["required"] == list(fields)
        for name in fields:
            assert schema["properties"][name] == as_written(model["properties"][name], model["$defs"]), name


def as_written(found: Any, parts: Mapping[str, Any]) -> Any:
    """A schema of pydantic as the document has it: null is one of the types, and responses have all fields."""
    if not isinstance(found, dict):
        return found
    if "$ref" in found:
        properties = parts[found["$ref"].rpartition("/")[2]]["properties"]
        fields = {name: as_written(one, parts) for name, one in properties.items()}
        return {"type": "object", "properties": fields, "required": list(fields)}
    found = {key: as_written(one, parts) for key, one in found.items() if key not in ("title", "default")}
    if "anyOf" in found:
        kind, null = found.pop("anyOf")
        found |= kind | {"type": [kind["type"], null["type"]]}
    if "description" in found:
        found["description"] = found["description"].replace("\n", " ")
    return found


def test_only_pages_of_health_and_links_need_no_key() -> None:
    public = {path for path, _, one in operations() if "security" not in one}
    assert public == {"/", "/health", "/health/live", "/health/ready", "/openapi.json"}


SCOPES = ("chat", "route", "feedback", "admin")


@pytest.mark.anyio
async def test_every_operation_accepts_keys_with_its_scope_alone() -> None:
    keys = [key_of(scope, scopes=(scope,)).model_dump(mode="json") for scope in SCOPES]
    async with gateway_of(registry_of(access={"keys": keys})) as gateway:
        for path, method, one in operations():
            security = one.get("security")
            expected = {None, *SCOPES} if security is None else set(security[0]["bearer"]) or set(SCOPES)
            accepted = set()
            for scope in (None, *SCOPES):
                headers = {"content-type": "application/json"} | ({} if scope is None else {"x-api-key": scope})
                answer = await gateway.post(
                    path.replace("{", "").replace("}", ""), b"{", method=method, headers=headers
                )
                if answer.status not in (401, 403):
                    accepted.add(scope)
            assert accepted == expected, path


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
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.observability.hooks"}
    with served(KEY) as url:
        # one worker: two threads that parse Python at once fail at times (AST recursion depth, CPython 3.11)
        command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", "--checks", "all"]
        command += ["--request-timeout", "60", "--phases", "examples,coverage,fuzzing", "--workers", "1", "--no-color"]
        command += ["--header", f"Authorization: Bearer {KEY}"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"Tested: {len(list(operations())) - 1}" in done.stdout  # all but the document's own
