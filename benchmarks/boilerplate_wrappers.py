"""Chats as clients send them: a prompt among the boilerplate of clients, from boilerplate_wrappers.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML

Messages = list[dict[str, str]]
Wrapper = Callable[[str], Messages]

CODING_SYSTEM = (
    "You are Hammer, a command line agent that helps developers with software engineering. Read files before you edit "
    "them, run the tests after each change, and keep answers short.\n\n"
    + "# Tools\nUse grep to search code and apply_patch to edit it. Never commit secrets.\n" * 30
    + "\nWorking directory: /home/dev/ledger\nThe module computes the P&L for the CFO.\nToday's date: 2026-11-20\n"
)
PROJECT = (
    "# Ledger service\n\nPython 3.12 with FastAPI and SQLAlchemy.\n\n## Commands\n- `make test` runs pytest\n"
    "- `make lint` runs ruff and mypy\n\n## Style\n- Type hints everywhere\n- No bare except\n- Functions of at most "
    "forty lines\n\n## Architecture\n- `api/` holds the routes, `store/` the database code\n- Migrations live in "
    "`migrations/` and are made by alembic\n- Never edit a migration that has been merged\n"
)
VERSES = "\n".join(["The harbour sleeps beneath a silver thread", "and every gull has folded up its wings"] * 12)
LEAFLET = "\n".join(
    ["Do not take these tablets with other anticoagulants.", "Common side effects: nausea, dizziness, rash."] * 20
)
MODULE = "\n".join(f"export function step{n}(state: State): State {{ return reduce(state, {n}); }}" for n in range(40))
CONTRACT = (
    "The tenant shall pay the rent on the first working day of each month. If the tenant is in default for more than "
    "thirty days, the landlord may terminate this agreement in writing. The parties submit to the courts of Kent. "
) * 3
TEXTS = {
    "system": CODING_SYSTEM,
    "project": PROJECT,
    "verses": VERSES,
    "leaflet": LEAFLET,
    "module": MODULE,
    "module_head": MODULE[:800],
    "contract": CONTRACT,
}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def filled(turns: list[dict[str, str]], prompt: str = "") -> Messages:
    """The messages of turns (role and text), with the texts and the prompt in place of their names."""
    messages: Messages = []
    for role, text in (pair for turn in turns for pair in turn.items()):
        for name, value in (*TEXTS.items(), ("prompt", prompt)):
            text = text.replace(f"{{{name}}}", value)
        messages.append({"role": role, "content": text})
    return messages


_FILE = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
WRAPPERS: Mapping[str, Wrapper] = {name: partial(filled, turns) for name, turns in _FILE["wrappers"].items()}
SHORT_REQUESTS: tuple[str, ...] = tuple(_FILE["short_requests"])
"""Requests to a coding agent that depend on its system prompt."""
CASES = tuple((case["name"], case["category"], filled(case["messages"])) for case in _FILE["cases"])
"""Name, category and messages of single cases."""
