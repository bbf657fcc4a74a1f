"""The sources from which the pages are generated. This is the only module of the package that imports the project."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import typer.main

from coe import errors
from coe.artifacts.active_state import ActiveState
from coe.cli import app as command_line
from coe.core import Reason
from coe.errors import REMEDIES
from coe.learning.log_frame import RATING, REDACTED
from coe.planning.problem import declared_assignment
from coe.records.record import COLUMNS, RECORD
from coe.registry import load, schema
from coe.settings import Settings
from gateway.app import create_app
from gateway.dialects import body_of
from gateway.endpoints.admin.records import LIST_FIELDS
from gateway.endpoints.routes import document
from gateway.main import open_services
from gateway.services import Services

ROOT = Path(__file__).parents[2]
RECORD_SCHEMA, RATING_SCHEMA = (one.json_schema(mode="serialization") for one in (RECORD.adapter, RATING))
INDEXED, LISTED, PRIVATE, CAUSES = COLUMNS, LIST_FIELDS, tuple(REDACTED), REMEDIES
REASONS: tuple[str, ...] = get_args(Reason)
_DECLARED = """\
version: 1
categories: [{name: general, description: everything}]
experts: [{name: generalist, model: m, runtime: external, base_url: "http://127.0.0.1:9/v1"}]
assignment: {general: generalist}
access: {keys: [{name: reader, sha256: "%s"}]}
""" % ("0" * 64)


@cache
def declaration_schema() -> dict[str, Any]:
    """The JSON schema of experts.yaml."""
    return schema()


def read_declaration(path: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The problems of a file as `coe check` reports them, without the name of the file; none for a valid one."""
    try:
        load(path, environ=environ)
    except errors.ConfigError as error:
        return tuple(problem.partition(f"{path.name}:")[2] or problem for problem in error.problems)
    return ()


@cache
def command() -> Any:
    """The `coe` command with its verbs."""
    return typer.main.get_command(command_line)


def environment_table() -> str:
    """The documented variables of the process, as a Markdown table."""
    return Settings.__doc__ or ""


def openapi() -> dict[str, Any]:
    """The OpenAPI document."""
    return document()


@dataclass(frozen=True, slots=True)
class Failure:
    """One error that a client can get: its code, HTTP status, OpenAI's error type, and its meaning."""

    code: str
    status: str
    kind: str
    meaning: str


def failures() -> list[Failure]:
    """Every code of an error body, by status and code."""
    found = {}
    for kind in _below(errors.RequestError):
        failure = _failure(kind)
        found.setdefault((failure.status, failure.code), failure)
    for code, name in _codes_in_calls():
        base = _failure(getattr(errors, name))
        found.setdefault((base.status, code), Failure(code, base.status, base.kind, ""))
    return [found[place] for place in sorted(found)]


def process_errors() -> list[tuple[str, str]]:
    """The errors that end a command or a process: name and meaning."""
    kinds = [kind for kind in _below(errors.CoEError) if not issubclass(kind, errors.RequestError)]
    return [(kind.__name__, kind.__doc__ or "") for kind in kinds if not kind.__name__.startswith("_")]


def metric_families() -> list[Any]:
    """The metrics of a gateway that has started: name, text, kind, labels and, for histograms, bounds."""
    return asyncio.run(_families())


async def _families() -> list[Any]:
    opened: list[Services] = []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "experts.yaml"
        file.write_text(_DECLARED)
        registry, settings = load(file, environ={}), Settings.read({"COE_HOME": folder}, config=file)
        router: Any = _Router()
        state = ActiveState(registry, router, declared_assignment(registry, ("general",)), 0.0, Path(folder))

        @asynccontextmanager
        async def parts() -> AsyncIterator[Services]:
            async with open_services(settings, read=lambda *_: state) as found:
                opened.append(found)
                yield found

        application = create_app(parts)
        async with application.router.lifespan_context(application):
            return list(opened[0].metrics.own_families().values())


class _Router:
    """Stands in for a trained router, which no page depends on."""

    version = "none"
    categories = ("general",)


def _below(kind: type) -> Iterator[type]:
    """The class and its subclasses in the error tree; those elsewhere exist only once their module is imported."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == "coe.errors":
            yield from _below(child)


def _failure(kind: Any) -> Failure:
    error = kind.__new__(kind)
    passed_on = issubclass(kind, errors.ExpertRejected)
    if passed_on:
        error.status, error.upstream_code = 400, None
    body = json.loads(body_of(error))["error"]
    return Failure(kind.code, "4xx" if passed_on else str(error.status), body["type"], kind.__doc__ or "")


def _codes_in_calls() -> Iterator[tuple[str, str]]:
    """Codes that a call such as InvalidRequest(..., code="invalid_json") gives to an error, with the error's name."""
    names = {kind.__name__ for kind in _below(errors.RequestError)}
    files = [path for package in ("coe", "gateway") for path in sorted((ROOT / package).rglob("*.py"))]
    files = [path for path in files if not {"learning", "cli"} & set(path.parts)]  # jobs answer no request
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Call) and (name := _called(node)) in names:
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield str(keyword.value.value), name


def _called(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
