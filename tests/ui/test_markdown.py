"""Answers as Markdown: every kind of block, hostile text, and text that arrives in pieces."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, Page, expect

from tests.ui.browsing import TIMEOUT_MS, check_no_sideways_scroll, needs_browser, visiting
from tests.ui.playground import Playground, answers, send_prompt, wait_until_answered

pytestmark = [pytest.mark.anyio, needs_browser]

KINDS = """\
## Title with *emphasis*

1. one
2. two
   - [x] nested

| name | value |
|------|------:|
| a    | `1`   |

```python
def f(): return "<b>"
```

Inline $a^2$, \\(b\\), prices $5 and $10, &amp; [a link](https://example.com/x).

$$\\frac{1}{2}$$
"""
HARM = (
    r"""
<script>window.harmed = 1</script> <img src=x onerror="window.harmed = 1"> "quoted" """
    + "\u202egnp.exe"
    + r"""

<style>body { display: none }</style><base href="http://evil.example/"><iframe src="http://evil.example/"></iframe>

[a](javascript:window.harmed=1) [b](data:text/html,x) [c](JaVaScRiPt:window.harmed=1 "t") <javascript:window.harmed=1>
[d](file:///etc/passwd) ![e](http://evil.example/pixel.png) ![f](javascript:window.harmed=1)

[ref]: javascript:window.harmed=1

```"><script>window.harmed=1</script>
</code></pre><script>window.harmed = 1</script>
```

```html
<span class="hljs-x"><script>window.harmed = 1</script></span>
```

$\href{javascript:window.harmed=1}{x} \includegraphics{http://evil.example/p.png} \style{background:url(http://evil.example/)}{y}$

$$\class{composer}{x} \rule{9999em}{9999em} \def\x{\x\x}\x$$

$$\tag{1}\label{conversations} x$$

$\ref{conversations} y$
"""
)
FORBIDDEN = "script, style, img, iframe, base, form, input, object, embed, link, [onerror], [style*=url]"
IN_PAGE = "math [id], math [href]"


async def shown_in_a_new_element(page: Page, text: str) -> str:
    """The text content of `text` as a complete answer, once all of it is rendered."""
    await page.evaluate(
        """(text) => {
          const shown = Object.assign(document.createElement("coe-markdown"), { text, complete: true });
          document.querySelector("main").append(shown);
        }""",
        text + "\n\nthe-end",
    )
    shown = page.locator("coe-markdown").last
    await expect(shown.locator(":scope > div:not(.text)").last).to_contain_text("the-end")
    return await shown.text_content() or ""


async def test_an_answer_is_rendered_as_markdown(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url) as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await send_prompt(page, KINDS)
        answer = answers(page)
        await expect(answer.locator("h4 em")).to_have_text("emphasis")
        await expect(answer.locator("ol > li > ul > .task")).to_have_text("☑ nested")
        await expect(answer.get_by_role("group", name="Table").locator("td.right code")).to_have_text("1")
        await expect(answer.locator(".fenced code .hljs-keyword").first).to_have_text("def")
        await expect(answer.locator(".fenced code")).to_have_text('def f(): return "<b>"')
        await expect(answer.locator("math")).to_have_count(3)
        await expect(answer.locator(".math.display mfrac")).to_have_count(1)
        await expect(answer).to_contain_text("prices $5 and $10, & a link")
        await expect(answer.get_by_role("link", name="a link")).to_have_attribute("rel", "noopener noreferrer")
        await page.evaluate("window.setTimeout = () => 0")  # the button keeps its text "Copied"
        await answer.get_by_role("button", name="Copy").click()
        await expect(answer.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == 'def f(): return "<b>"'


async def test_hostile_answers_run_nothing_and_load_nothing(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url, phone=True) as page:  # which fails for a request to another host
        await send_prompt(page, HARM)
        await wait_until_answered(page)
        await expect(answers(page).locator(".math.display")).to_have_count(2)
        await expect(answers(page).locator("math mtext")).not_to_have_count(0)  # the formula with a label is typeset
        assert await page.locator(".prompt .text").text_content() == HARM
        assert await answers(page).locator(FORBIDDEN).count() == 0
        assert await answers(page).locator(IN_PAGE).count() == 0
        links = await answers(page).locator("coe-markdown a[href]").evaluate_all("(all) => all.map((one) => one.href)")
        assert links == ["http://evil.example/pixel.png"]
        assert await page.evaluate("window.harmed") is None
        await check_no_sideways_scroll(page)
        await page.get_by_role("button", name="Conversations").click()
        await expect(page.get_by_role("dialog")).to_be_visible()


SLOW = {
    "quotes": ">" * 50_000,
    "brackets": "[" * 50_000,
    "emphasis": "_a__b" * 10_000,
    "word": "x" * 100_000,
    "columns": "|a" * 900 + "|\n" + "|-" * 900 + "|\n" + "|b|\n" * 9_000,
    "levels": "\n".join("  " * level + f"- x{level}" for level in range(60)),
}


async def test_a_text_made_to_be_slow_is_shown_in_full(browser: Browser, playground: Playground) -> None:
    async with visiting(browser, playground.url, phone=True) as page:
        for name, text in SLOW.items():
            shown = await shown_in_a_new_element(page, text)
            if name == "levels":
                assert [word for word in text.split() if word != "-"] == re.findall(r"x\d+", shown)
                assert await page.locator("coe-markdown li").count() < 20
            else:
                assert len(shown) >= len(text) - text.count("\n"), name
        await check_no_sideways_scroll(page)


async def test_the_text_is_plain_where_the_renderer_cannot_be_loaded(browser: Browser, playground: Playground) -> None:
    context = await browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = await context.new_page()
    await page.route("**/vendor/marked.js", lambda route: route.abort())
    await page.goto(playground.url)
    await send_prompt(page, "# code <b>")
    await expect(answers(page).locator("coe-markdown > .text")).to_have_text("# code <b>")
    await context.close()
