"""Checks code blocks by their language. Every check yields one sentence for each mistake."""

from __future__ import annotations

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from scripts.reference.sources import declaration_schema, openapi
from tests.docs import command_line, shell
from tests.docs.declarations import complete, problems
from tests.docs.pages import ROOT, Block

_PROGRAMS = re.compile(
    r"cat|cd|claude|docker|echo|export|git|grep|helm|jq|kubectl|mkdir|nice|ollama|openssl|redis-cli|source|uv|vllm"
    r"|cp|chrt|bash|nvidia-smi|\.ci/run|scripts/[a-z-]+"
)
"""Programs that snippets may use beside those whose words are checked; a name that is misspelt is not among them."""
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|gateway|HOST|llm\.example\.com)$")
_IN_REPOSITORY = re.compile(r"(?:\./)?(?:deploy|benchmarks|scripts|docs|examples|tests)/[\w./*-]*")
_OTHER_YAML = ("services", "scrape_configs", "groups", "apiVersion", "rule_files", "authorization", "networkPolicy")
"""First keys of YAML that is not experts.yaml."""


def mistakes(block: Block) -> Iterator[str]:
    """Yield the errors of a block."""
    if block.language is None:
        yield "the fence names no language"
    elif block.language in LANGUAGES:
        yield from LANGUAGES[block.language](block.text)
    elif not block.language.startswith("{"):  # a directive, of which Sphinx judges
        yield f"the language {block.language!r} is not checked; known: {', '.join(sorted(LANGUAGES))}"


def _json(text: str) -> Iterator[str]:
    """One document, or one a line."""
    try:
        json.loads(text)
    except ValueError as whole:
        try:
            for line in text.splitlines():
                json.loads(line)
        except ValueError:
            yield f"no JSON: {whole}"


def _yaml(text: str) -> Iterator[str]:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        yield f"no YAML: {' '.join(str(error).split())}"
        return
    known = declaration_schema()["properties"]
    if isinstance(value, dict) and known.keys() & value.keys():
        yield from problems(text if value.keys() >= _REQUIRED else complete(value))
    elif isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        section = "experts" if any("runtime" in item for item in value) else "categories"
        yield from problems(complete({section: value}))
    elif not (isinstance(value, dict) and any(key in value for key in _OTHER_YAML)):
        yield f"neither experts.yaml nor known YAML of another program: {text.splitlines()[0]}"


_REQUIRED = {"version", "categories", "experts", "assignment"}


def _toml(text: str) -> Iterator[str]:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        yield f"no TOML: {error}"


def _python(text: str) -> Iterator[str]:
    try:
        tree = compile(text, "<snippet>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        yield f"no Python: {error}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"no module {name.name}" for name in node.names if not _there(name.name))
        elif isinstance(node, ast.ImportFrom):
            yield from _imported(node)


def _imported(node: ast.ImportFrom) -> Iterator[str]:
    if not node.module or not _there(node.module):
        yield f"no module {node.module}"
        return
    module = importlib.import_module(node.module)
    for name in node.names:
        if name.name != "*" and not hasattr(module, name.name) and not _there(f"{node.module}.{name.name}"):
            yield f"{node.module} has no {name.name}"


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _shell(text: str) -> Iterator[str]:
    try:
        found = list(shell.commands(text))
    except ValueError as error:
        yield f"no shell command: {error}"
        return
    for words in found:
        yield from _command(words)


def _command(words: list[str]) -> Iterator[str]:
    program, arguments = words[0], words[1:]
    name = Path(program).name
    if "exec" in arguments and "coe" in arguments:  # docker compose exec gateway coe ...
        name, arguments = "coe", arguments[arguments.index("coe") + 1 :]
    if name in _CHECKED:
        yield from _CHECKED[name](arguments)
    elif not _PROGRAMS.fullmatch(program):
        yield f"unknown program {program}"
    for word in arguments:
        if name != "coe" and _IN_REPOSITORY.fullmatch(word) and not list(ROOT.glob(word.removeprefix("./"))):
            yield f"no {word} in the repository"


def _make(arguments: list[str]) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    yield from (f"make has no target {word}" for word in arguments if word not in targets and "=" not in word)


def _pip(arguments: list[str]) -> Iterator[str]:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in arguments:
        if found := re.fullmatch(r"(?:composition-of-experts|\.)\[([\w,]+)\]", word):
            yield from (f"no extra {extra}" for extra in found[1].split(",") if extra not in declared)


def _python_program(arguments: list[str]) -> Iterator[str]:
    if arguments[:1] == ["-m"]:
        module = arguments[1]
        if module == "pip":
            yield from _pip(arguments[2:])
        elif not _there(module):
            yield f"no module {module}"
        else:
            yield from _options(ROOT / Path(*module.split(".")).with_suffix(".py"), arguments[2:])
    elif arguments and arguments[0].endswith(".py"):
        if not (ROOT / arguments[0]).is_file():
            yield f"no {arguments[0]} in the repository"
        yield from _options(ROOT / arguments[0], arguments[1:])


def _options(script: Path, arguments: list[str]) -> Iterator[str]:
    """Options that neither a script of the repository nor the scripts beside it name."""
    if not script.is_file():
        return
    source = "".join(path.read_text() for path in script.parent.glob("*.py"))
    for word in arguments:
        if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source:
            yield f"{script.name} has no option {word}"


def _curl(arguments: list[str]) -> Iterator[str]:
    addresses = [word for word in arguments if re.match(r"https?://", word)]
    if not addresses:
        yield "curl without an address"
    bodies = [value for flag, value in pairwise(arguments) if flag in ("-d", "--data")]
    methods = [value for flag, value in pairwise(arguments) if flag in ("-X", "--request")]
    for address in addresses:
        if _LOCAL.match(urlsplit(address).hostname or ""):
            method = methods[0].lower() if methods else "post" if bodies else "get"
            yield from _request(method, urlsplit(address).path, bodies)


def _request(method: str, path: str, bodies: list[str]) -> Iterator[str]:
    if path.startswith("/ui/"):
        return
    operations = _operations(path)
    if operations is None:
        yield f"no path {path} in the OpenAPI document"
    elif method not in operations:
        yield f"no {method.upper()} {path} in the OpenAPI document"
    elif bodies and not bodies[0].startswith("@"):
        yield from _body(operations[method], bodies[0])


def _operations(path: str) -> Mapping[str, Any] | None:
    paths = openapi()["paths"]
    for template in sorted(paths, key=lambda one: "{" in one):
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            found: Mapping[str, Any] = paths[template]
            return found
    return None


def _body(operation: Mapping[str, Any], body: str) -> Iterator[str]:
    try:
        value = json.loads(body)
    except ValueError as error:
        yield f"the body is no JSON: {error}"
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for error in Draft202012Validator({**schema, "components": openapi()["components"]}).iter_errors(value):
        yield f"the body does not fit the OpenAPI document: {error.message}"


_CHECKED: Mapping[str, Callable[[list[str]], Iterator[str]]] = {
    "coe": command_line.mistakes,
    "make": _make,
    "pip": _pip,
    "python": _python_program,
    "python3": _python_program,
    "curl": _curl,
}
LANGUAGES: Mapping[str, Callable[[str], Iterator[str]]] = {
    "bash": _shell,
    "ini": lambda _: iter(()),
    "json": _json,
    "python": _python,
    "text": lambda _: iter(()),
    "toml": _toml,
    "yaml": _yaml,
}
