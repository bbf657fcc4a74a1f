"""Builds the documentation site into build/docs, with warnings as errors; `make docs` runs it.

The site must not load anything from another host: pages that would are named, and the exit status is 1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = ROOT / "docs", ROOT / "build" / "docs"

_LOADED = (
    re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data)=[\"']((?:https?:)?//[^\"']+)"
    ),
    re.compile(
        r"<link\b(?=[^>]*\brel=[\"'](?:stylesheet|preload|icon|modulepreload)[\"'])[^>]*?\bhref=[\"']((?:https?:)?//[^\"']+)"
    ),
    re.compile(r"(?:@import\s+(?:url\()?|\burl\()\s*[\"']?((?:https?:)?//[^\"')\s]+)"),
)
"""Addresses that a browser fetches to show a page or to read a style sheet. The target of a link is not one."""


def loaded_from_elsewhere(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every address of another host that the pages and style sheets of a built site load, with the file."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text()
            for pattern in _LOADED:
                yield from ((path, address) for address in pattern.findall(text))


def main() -> int:
    """Build, then check."""
    from sphinx.cmd.build import build_main

    if build_main(
        ["-b", "html", "-W", "--keep-going", "-q", "-d", str(TARGET.with_name("doctrees")), str(SOURCE), str(TARGET)]
    ):
        return 1
    found = list(loaded_from_elsewhere(TARGET))
    for path, address in found:
        sys.stderr.write(f"{path.relative_to(TARGET)} loads {address}; ship the file in docs/ instead\n")
    if not found:
        sys.stdout.write(f"docs: {(TARGET / 'index.html').relative_to(ROOT)}\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
