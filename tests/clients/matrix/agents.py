"""Coding agents of the command line: how each is started, and how its output shows the answer.

Each agent works in an empty folder, with a home folder of its own and without telemetry or updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.clients.matrix.environment import NPM
from tests.clients.matrix.service import KEY


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: arguments and further variables."""

    arguments: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)


Start = Callable[[str, Path, str], Command]
"""Command of an agent for the gateway's address, its home folder and a prompt. May write files into the home folder."""


def binary(*pattern: str) -> str:
    """Return the agent's executable in the npm package for this platform."""
    found = sorted(NPM.joinpath("node_modules").glob("/".join(pattern)), key=lambda path: len(str(path)))
    assert found, f"no executable at {'/'.join(pattern)}"
    return str(found[0])


def _claude_code(url: str, home: Path, prompt: str) -> Command:
    options = ("--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions", "--model", "auto")
    environ = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",  # lets root skip the permissions
    }
    return Command((binary("@anthropic-ai", "claude-code-*", "claude"), "-p", prompt, *options), environ)


_CODEX = """\
model = "auto"
model_provider = "coe"
analytics.enabled = false

[model_providers.coe]
name = "CoE"
base_url = "{url}/v1"
env_key = "COE_KEY"
wire_api = "responses"
"""


def _codex(url: str, home: Path, prompt: str) -> Command:
    (home / ".codex").mkdir(exist_ok=True)
    (home / ".codex" / "config.toml").write_text(_CODEX.format(url=url))
    options = ("exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    return Command((binary("@openai", "codex-*", "vendor", "*", "bin", "codex"), *options, prompt), {"COE_KEY": KEY})


def _opencode(url: str, home: Path, prompt: str) -> Command:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "CoE",
        "options": {"baseURL": f"{url}/v1", "apiKey": KEY},
        "models": {"auto": {"name": "auto", "tool_call": True}},
    }
    config = {
        "provider": {"coe": provider},
        "model": "coe/auto",
        "small_model": "coe/auto",
        "autoupdate": False,
        "share": "disabled",
        "permission": {"bash": "allow"},
        "lsp": False,
        "formatter": False,
    }
    environ = {
        "OPENCODE_CONFIG_CONTENT": orjson.dumps(config).decode(),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }
    command = (binary("opencode-*", "bin", "opencode"), "run", "--format", "json", "--title", "test", prompt)
    return Command(command, environ)


AGENTS: dict[str, Start] = {"claude-code": _claude_code, "codex": _codex, "opencode": _opencode}


def answer_in(output: bytes) -> str:
    """Return the last text in an agent's output, which is a JSON object a line."""
    texts = [text for line in output.splitlines() if line.startswith(b"{") for text in _texts(orjson.loads(line))]
    return texts[-1] if texts else ""


def _texts(event: dict[str, Any]) -> Iterator[str]:
    if event.get("type") == "result":  # Claude Code
        yield event.get("result") or ""
    elif (item := event.get("item") or {}).get("type") == "agent_message":  # Codex
        yield item["text"]
    elif event.get("type") == "text":  # opencode
        yield event["part"]["text"]
