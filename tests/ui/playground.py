"""A gateway with experts for the playground, and the actions of a visitor there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Locator, Page, expect

from tests.gateway.served import Served, serving
from tests.ui.browsing import wait_until
from tests.ui.echo_server import EchoServer

MODELS = {
    "coder": "echo",
    "painter": "echo",
    "broken": "status:500",
    "busy": "retry:429:70",
    "breaks": "breaks",
    "stalls": "stalls",
    "silent": "silent",
}
RECIPES = [
    {"name": "panel", "vote": ["coder", "painter"]},
    {"name": "careful", "cascade": [["coder", "broken"], "painter"]},
]


@dataclass(frozen=True)
class Playground:
    served: Served
    echo: EchoServer

    @property
    def url(self) -> str:
        return f"{self.served.url}/ui/#/playground"


@asynccontextmanager
async def open_playground(folder: Path) -> AsyncIterator[Playground]:
    """A gateway over all of MODELS, with RECIPES."""
    echo = EchoServer()
    runner = await echo.start()
    usual = {"runtime": "external", "base_url": echo.url, "prices": {"output": 2.0}, "context_length": 10**6}
    experts = [{"name": name, "model": model, **usual} for name, model in MODELS.items()]
    assignment = {"code": "coder", "art": "painter", "general": "coder"}
    async with serving(folder, experts=experts, assignment=assignment, recipes=RECIPES) as served:
        yield Playground(served, echo)
    await runner.cleanup()


async def send_prompt(page: Page, text: str) -> None:
    await page.get_by_label("Your message").fill(text)
    await page.keyboard.press("Enter")


async def wait_until_answered(page: Page) -> None:
    await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def wait_until_complete(page: Page) -> None:
    """Wait until the last turn has its answer, record and explanation, in the tab that sent it or in one that follows.

    Before that, the layout may move and the turn may be saved again. A change in another tab then makes a second
    conversation.
    """
    await wait_until_answered(page)
    await wait_until(
        page,
        """async () => {
      const { conversation } = await import("./views/playground/conversation.js");
      return conversation.turns.at(-1).answers.every((answer) => !answer || (answer.record && answer.explanation));
    }""",
    )


def answers(page: Page) -> Locator:
    return page.locator("article.answer")


async def choose(page: Page, model: str, second: str = "") -> None:
    await page.get_by_label("Model").select_option(model)
    await page.get_by_label("Compare with").select_option(second)
