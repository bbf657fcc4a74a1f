"""Checks that links lead to existing pages, headings, folders and files of the repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.docs.pages import DOCS, Page, toctree_entries


def mistakes(page: Page, others: Mapping[Path, Page]) -> Iterator[str]:
    """Yield the errors of the links of a page."""
    for target, line in page.links:
        parts = urlsplit(target)
        if not parts.scheme:
            yield from (f"line {line}: {why}" for why in _link(page, unquote(parts.path), parts.fragment, others))
    for block in page.blocks:
        if block.language == "{toctree}":
            for entry, pattern in toctree_entries(block):
                if not pattern and not (page.path.parent / f"{entry}.md").is_file():
                    yield f"line {block.line}: the navigation names {entry}, which is not there"


def unlisted(pages: Mapping[Path, Page]) -> set[str]:
    """Pages below docs/ that no toctree names."""
    listed = {DOCS / "index.md"}
    for page in pages.values():
        for block in page.blocks:
            if block.language == "{toctree}":
                for entry, _ in toctree_entries(block):
                    listed |= {path.resolve() for path in page.path.parent.glob(f"{entry}.md")}
    return {path.relative_to(DOCS).as_posix() for path in pages if path.is_relative_to(DOCS) and path not in listed}


def _link(page: Page, path: str, fragment: str, others: Mapping[Path, Page]) -> Iterator[str]:
    place = (page.path.parent / path).resolve() if path else page.path
    if path and (path.startswith("/") or not (place in others or place.exists())):
        yield f"no {path} from here"
    elif fragment and place in others and fragment not in others[place].anchors:
        yield f"{path or 'this page'} has no heading #{fragment}"
