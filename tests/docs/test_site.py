"""The site loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.docs import loaded_from_elsewhere


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.com/x.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example.com/css">',
        "<img alt='' src='http://example.com/x.png'>",
        "<style>@import url(https://example.com/x.css);</style>",
        "@font-face { src: url('https://example.com/x.woff2'); }",
    ],
)
def test_what_a_browser_would_fetch_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.html").write_text(text)
    assert len(list(loaded_from_elsewhere(tmp_path))) == 1


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.com">a link</a>',
        '<script src="_static/x.js"></script>',
        "<code>curl http://127.0.0.1:8080/v1/models</code>",
    ],
)
def test_what_it_would_not_fetch_is_left(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.html").write_text(text)
    assert list(loaded_from_elsewhere(tmp_path)) == []
