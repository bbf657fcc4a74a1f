"""The clients of the matrix: package, API, the program that uses them, and what is known not to work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.clients.matrix.service import NATIVE, TRANSLATED

Feature = Literal["chat", "stream", "tools", "cancel"]
FEATURES: tuple[Feature, ...] = ("chat", "stream", "tools", "cancel")
CHAT, RESPONSES, MESSAGES = "Chat Completions", "Responses", "Messages"
Cell = tuple[str, str, Feature]
"""Key of the client, expert and feature."""


@dataclass(frozen=True, slots=True)
class Client:
    """One row of the matrix.

    `program` is a file in `programs/`, whose suffix selects the interpreter, or the name of a coding agent. `provider`
    is the package that a program is to use.
    """

    name: str
    package: str
    api: str
    program: str
    features: tuple[Feature, ...] = FEATURES
    provider: str = ""

    @property
    def key(self) -> str:
        """Name of the row in tests and gaps."""
        return f"{self.program}:{self.provider}" if self.provider else self.program

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that the client is run against: an expert with chat alone is translated for the other APIs."""
        return (NATIVE,) if self.api == CHAT else (NATIVE, TRANSLATED)

    @property
    def is_agent(self) -> bool:
        """True for a coding agent."""
        return "." not in self.program

    @property
    def index(self) -> Literal["pypi", "npm"]:
        """The package index that the client comes from."""
        return "pypi" if self.program.endswith(".py") else "npm"


CLIENTS = (
    Client("openai (Python)", "openai", CHAT, "openai_chat.py"),
    Client("openai (Python)", "openai", RESPONSES, "openai_responses.py"),
    Client("openai (Python), stored answers", "openai", RESPONSES, "openai_stored.py", ("tools",)),
    Client("anthropic (Python)", "anthropic", MESSAGES, "anthropic_messages.py"),
    Client("LangChain", "langchain-openai", CHAT, "langchain_agent.py"),
    Client("litellm", "litellm", CHAT, "litellm_chat.py"),
    Client("pydantic-ai", "pydantic-ai-slim", CHAT, "pydantic_agent.py"),
    Client("openai (Node)", "openai", CHAT, "openai_chat.mjs"),
    Client("openai (Node)", "openai", RESPONSES, "openai_responses.mjs"),
    Client("@anthropic-ai/sdk (Node)", "@anthropic-ai/sdk", MESSAGES, "anthropic_messages.mjs"),
    Client("AI SDK, openai-compatible", "ai", CHAT, "ai_sdk.mjs", provider="openai-compatible"),
    Client("AI SDK, openai", "ai", RESPONSES, "ai_sdk.mjs", provider="openai"),
    Client("AI SDK, anthropic", "ai", MESSAGES, "ai_sdk.mjs", provider="anthropic"),
    Client("Claude Code", "@anthropic-ai/claude-code", MESSAGES, "claude-code"),
    Client("Codex", "@openai/codex", RESPONSES, "codex"),
    Client("opencode", "opencode-ai", CHAT, "opencode"),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """A cell that does not work today: `text` for the matrix, `error` as part of the failure's text.

    A cell with a gap must fail in this way. Once it works, its test says so, and its line here is removed.
    """

    text: str
    error: str


GAPS: dict[Cell, Gap] = {}
