"""Generates docs/reference and docs/experts.schema.json: `python -m scripts.reference` writes, `--check` compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import orjson

from scripts.reference import cli, environment, errors, experts_yaml, headers, http_api, metrics, records
from scripts.reference.markdown import wrapped
from scripts.reference.sources import declaration_schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
SCHEMA = "experts.schema.json"
"""Its file is in the parent of the folder of pages, where editors find it by the first line of experts.yaml."""
NOTE = "<!-- Generated from the code by `make reference`. Do not edit. -->\n"

_PAGES = {
    "experts-yaml.md": experts_yaml,
    "cli.md": cli,
    "http-api.md": http_api,
    "headers.md": headers,
    "errors.md": errors,
    "metrics.md": metrics,
    "record-fields.md": records,
    "environment.md": environment,
}
_INDEX = """\
# Reference

These pages are generated from the code, so they match the version that you run.

| page | content |
|---|---|
{rows}

```{{toctree}}
:hidden:

{names}
```
"""


@cache
def pages() -> Mapping[str, str]:
    """Return the Markdown of every page by file name."""
    found = {name: _noted(page.page()) for name, page in _PAGES.items()}
    rows = "\n".join(f"| [{page.TITLE}]({name}) | {page.ABOUT} |" for name, page in _PAGES.items())
    names = "\n".join(name.removesuffix(".md") for name in _PAGES)
    return {"index.md": _noted(_INDEX.format(rows=rows, names=names)), **found}


def files() -> Mapping[str, str]:
    """Return the text of every page and the JSON schema of experts.yaml, by path relative to the folder of pages."""
    schema = orjson.dumps(declaration_schema(), option=orjson.OPT_INDENT_2).decode() + "\n"
    return {**pages(), f"../{SCHEMA}": schema}


def outdated(folder: Path = FOLDER) -> list[str]:
    """The files that differ from what the code gives, are missing, or should not be there."""
    given = files()
    committed = {path.name: path.read_text() for path in folder.glob("*.md")}
    schema = folder.parent / SCHEMA
    if schema.is_file():
        committed[f"../{SCHEMA}"] = schema.read_text()
    return sorted(name for name in given.keys() | committed.keys() if given.get(name) != committed.get(name))


def write(folder: Path = FOLDER) -> None:
    """Write every file, and remove pages that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    given = files()
    for path in folder.glob("*.md"):
        if path.name not in given:
            path.unlink()
    for name, text in given.items():
        (folder / name).write_text(text)


def _noted(text: str) -> str:
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{NOTE}{wrapped(rest)}"
