"""Every snippet, name and link of the documentation works. Each check is shown to fail on a mistake."""

from __future__ import annotations

import pytest

from tests.docs import links, names, snippets
from tests.docs.pages import DOCS, ROOT, Block, Page, pages, read

PAGES = pages()
BY_PATH = {page.path: page for page in PAGES}
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCE = "`" * 3


@EACH
def test_snippets_work(page: Page) -> None:
    """Commands of pages with past results are left out: what they ran may no longer exist."""
    blocks = [block for block in page.blocks if not (page.historical and block.language == "bash")]
    assert [f"line {block.line}: {why}" for block in blocks for why in snippets.mistakes(block)] == []


@EACH
def test_names_in_sentences_exist(page: Page) -> None:
    if not page.historical:
        assert [f"line {line}: {why}" for text, line in page.code for why in names.mistakes(text)] == []


@EACH
def test_links_lead_somewhere(page: Page) -> None:
    assert list(links.mistakes(page, BY_PATH)) == []


def test_every_page_is_in_the_navigation() -> None:
    assert links.unlisted(BY_PATH) == set()


@pytest.mark.parametrize(
    ("language", "text", "why"),
    [
        (None, "x", "names no language"),
        ("brainfuck", "x", "is not checked"),
        ("yaml", "policy: {timeuot: 9}", "unknown key 'timeuot'; did you mean 'timeout'?"),
        ("yaml", "policy: {timeout: [}", "no YAML"),
        ("yaml", "experts: [{name: a, model: m, runtime: external}]", "needs a base_url"),
        ("json", '{"a": 1,}', "no JSON"),
        ("toml", "a = ", "no TOML"),
        ("python", "def", "no Python"),
        ("python", "import coe.no_such_module", "no module coe.no_such_module"),
        ("python", "from openai import OpenAy", "openai has no OpenAy"),
        ("bash", "coe chek", "no verb 'chek'"),
        ("bash", "coe check --liv", "has no option --liv"),
        ("bash", "coe log export", "Missing parameter"),
        ("bash", "coe paln --help", "no verb 'paln'"),
        ("bash", "A=1 .venv/bin/coe check | coe chek", "no verb 'chek'"),
        ("bash", "docker compose exec gateway coe chek", "no verb 'chek'"),
        ("bash", "coe check 'x", "No closing quotation"),
        ("bash", "ceo check", "unknown program ceo"),
        ("bash", "make serv", "no target serv"),
        ("bash", "pip install 'composition-of-experts[rai]'", "no extra rai"),
        ("bash", "python benchmarks/gatewai.py", "no benchmarks/gatewai.py"),
        ("bash", "python -m benchmarks.gatewai", "no module benchmarks.gatewai"),
        ("bash", "python -m benchmarks.gateway --ruonds 3", "no option --ruonds"),
        ("bash", "helm install coe deploy/helm/cooe", "no deploy/helm/cooe in the repository"),
        ("bash", "curl http://127.0.0.1:8080/v1/chat/completion", "no path /v1/chat/completion"),
        ("bash", "curl -X DELETE http://localhost:8080/v1/models", "no DELETE /v1/models"),
        ("bash", 'curl http://localhost:8080/v1/route -d \'{"model": "auto"}\'', "'messages' is a required property"),
    ],
)
def test_a_wrong_snippet_fails(language: str | None, text: str, why: str) -> None:
    found = list(snippets.mistakes(Block(language, text, 1)))
    assert any(why in one for one in found), found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("coe chek", "no verb 'chek'"),
        ("coe log export --redactt", "has no option --redactt"),
        ("x-coe-exprt", "no header"),
        ("coe_request_total", "no metric coe_request_total"),
        ("COE_WORKER=2", "no variable COE_WORKER"),
        ("policy.exploration.rat: 0.1", "no key policy.exploration.rat"),
        ("gateway/nowhere.py", "no gateway/nowhere.py"),
    ],
)
def test_a_wrong_name_fails(text: str, why: str) -> None:
    found = list(names.mistakes(text))
    assert any(why in one for one in found), found


def test_wrong_links_fail_and_right_ones_pass() -> None:
    text = "# A title\n\n[a](#a-title) [b](#a-tile) [c](nowhere.md) [d](index.md#nowhere) [e](../experts.yaml) "
    text += "![f](no.svg) [g](https://example.com/x) [h](../deploy)\n\n"
    text += f"{FENCE}{{toctree}}\n:glob:\nno/page\nno/*\n{FENCE}\n"
    page = read(DOCS / "page.md", text)
    index = read(DOCS / "index.md", "# Title")
    assert list(links.mistakes(page, {page.path: page, index.path: index})) == [
        "line 3: this page has no heading #a-tile",
        "line 3: no nowhere.md from here",
        "line 3: index.md has no heading #nowhere",
        "line 3: no no.svg from here",
        "line 5: the navigation names no/page, which is not there",
    ]


def test_a_page_that_no_toctree_names_is_found() -> None:
    page = read(DOCS / "lost.md", "# Lost")
    assert links.unlisted({page.path: page}) == {"lost.md"}
    assert read(ROOT / "README.md").blocks
