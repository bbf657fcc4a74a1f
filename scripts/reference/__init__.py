"""Generates docs/reference from the code: `python -m scripts.reference` writes the pages, `--check` compares them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.reference import cli, environment, errors, experts_yaml, headers, http_api, metrics, records
from scripts.reference.markdown import wrapped

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
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


def pages() -> Mapping[str, str]:
    """By file name: the Markdown of every page."""
    found = {name: _noted(page.page()) for name, page in _PAGES.items()}
    rows = "\n".join(f"| [{page.TITLE}]({name}) | {page.ABOUT} |" for name, page in _PAGES.items())
    names = "\n".join(name.removesuffix(".md") for name in _PAGES)
    return {"index.md": _noted(_INDEX.format(rows=rows, names=names)), **found}


def outdated(folder: Path = FOLDER) -> list[str]:
    """The files in the folder that differ from what the code gives, are missing, or should not be there."""
    given = pages()
    there = {path.name: path.read_text() for path in folder.glob("*.md")}
    return sorted(name for name in given.keys() | there.keys() if given.get(name) != there.get(name))


def write(folder: Path = FOLDER) -> None:
    """Write every page, and remove pages that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    given = pages()
    for path in folder.glob("*.md"):
        if path.name not in given:
            path.unlink()
    for name, text in given.items():
        (folder / name).write_text(text)


def _noted(text: str) -> str:
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{NOTE}{wrapped(rest)}"
