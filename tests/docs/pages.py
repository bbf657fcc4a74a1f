"""Pages of the documentation, and what they contain: code blocks, inline code, links, headings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True)
class Block:
    """A code block. `language` is None if it names none."""

    language: str | None
    text: str
    line: int


@dataclass(slots=True)
class Page:
    """One Markdown file."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    code: list[tuple[str, int]] = field(default_factory=list)
    """Inline code and its line."""
    links: list[tuple[str, int]] = field(default_factory=list)
    """Targets of links and images, and their lines."""
    anchors: set[str] = field(default_factory=set)
    """The anchors of this page that a link may name."""
    superseded: bool = False
    """True for a decision that a later one replaced."""

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def historical(self) -> bool:
        """True for pages whose commands and names are of a past date: measurements, changes, superseded decisions."""
        return self.superseded or self.name.startswith("docs/experiments/") or self.name == "CHANGELOG.md"


def pages() -> list[Page]:
    """Every page of the repository."""
    return [read(path) for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])]


def read(path: Path, text: str | None = None) -> Page:
    """A page from its file, or from the text that its file would hold."""
    text = path.read_text() if text is None else text
    page = Page(path, superseded="\nStatus: superseded by " in text)
    slugs: Counter[str] = Counter()
    heading = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        line = (token.map or [0])[0] + 1
        if token.type in ("fence", "code_block"):
            words = token.info.split()
            page.blocks.append(Block(words[0] if words else None, token.content, line))
        elif token.type == "inline":
            _inline(page, token, line)
            if heading:
                slug = _slug("".join(child.content for child in token.children or ()))
                page.anchors.add(f"{slug}-{slugs[slug]}" if slugs[slug] else slug)
                slugs[slug] += 1
        heading = token.type == "heading_open"
    return page


def _inline(page: Page, token: Token, line: int) -> None:
    for child in token.children or ():
        if child.type == "code_inline":
            page.code.append((child.content, line))
        elif child.type == "link_open":
            page.links.append((str(child.attrGet("href")), line))
        elif child.type == "image":
            page.links.append((str(child.attrGet("src")), line))


def _slug(heading: str) -> str:
    """As repository browsers and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def toctree_entries(block: Block) -> Iterator[tuple[str, bool]]:
    """The documents that a toctree names, and whether as a pattern."""
    for line in block.text.splitlines():
        if line.strip() and not line.startswith(":"):
            yield line.strip(), any(sign in line for sign in "*?[")
