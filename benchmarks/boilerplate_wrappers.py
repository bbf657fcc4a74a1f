"""Chats as clients send them: a prompt among the boilerplate of coding agents, editors and agent frameworks.

The structure follows the clients; the wording is this project's own. Each wrapper turns a prompt into messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def tool(text: str) -> dict[str, str]:
    return {"role": "tool", "content": text}


def reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"


def claude_code(prompt: str) -> Messages:
    context = reminder(f"Context for this session follows.\n# projectDoc\n{PROJECT}\n# date\nToday is 2026-11-20.")
    return [system(CODING_SYSTEM), user(f"{context}\n{prompt}")]


def claude_code_after(prompt: str) -> Messages:
    todo = reminder("The todo list is empty. Use the todo tool if the work has several steps.")
    return [system(CODING_SYSTEM), user(f"{reminder(PROJECT)}\n{prompt}\n{todo}")]


def claude_code_loop(prompt: str) -> Messages:
    steps = [assistant("I will look at the files."), tool(LEAFLET), user(reminder("The todo list was not updated."))]
    return [*claude_code(prompt), *steps, *steps]


def codex(prompt: str) -> Messages:
    agents = f"# AGENTS.md instructions for /home/dev/ledger\n\n<INSTRUCTIONS>\n{PROJECT}\n</INSTRUCTIONS>"
    environment = (
        "<environment_context>\n  <cwd>/home/dev/ledger</cwd>\n  <sandbox_mode>workspace-write</sandbox_mode>\n"
        "  <network_access>restricted</network_access>\n  <shell>bash</shell>\n</environment_context>"
    )
    permissions = "<permissions instructions>\nAsk before commands that write outside the folder.\n</permissions>"
    return [system(CODING_SYSTEM), system(permissions), user(agents), user(environment), user(prompt)]


def opencode(prompt: str) -> Messages:
    return [system(CODING_SYSTEM), user(prompt)]


def aider(prompt: str) -> Messages:
    files = f"These files are in the chat now, so you may edit them.\n\npoems/harbour.txt\n```\n{VERSES}\n```\n"
    return [system(CODING_SYSTEM), user(files), assistant("Ok, I will edit only these."), user(prompt)]


def openhands(prompt: str) -> Messages:
    nudge = (
        "Please go on with the task in whatever way you think is suitable.\nIf you think that it is solved, call the "
        "finish tool.\nIMPORTANT: never ask for human help."
    )
    result = f"EXECUTION RESULT of [run_shell]:\n{MODULE[:800]}\n[exit code 0]"
    return [
        system(CODING_SYSTEM),
        user(prompt),
        assistant("Running it."),
        user(result),
        assistant("Done?"),
        user(nudge),
    ]


def editor(prompt: str) -> Messages:
    return [system(CODING_SYSTEM), user(f"```ts src/steps.ts\n{MODULE}\n```\n\n{prompt}")]


def editor_blocks(prompt: str) -> Messages:
    parts = f'<attached_files>\n<file path="src/steps.ts">\n{MODULE}\n</file>\n</attached_files>'
    state = "<environment_details>\n# Open tabs\nsrc/steps.ts\n# Current time\n11:04\n</environment_details>"
    return [system(CODING_SYSTEM), user(f"{parts}\n<user_query>\n{prompt}\n</user_query>\n{state}")]


def smolagents(prompt: str) -> Messages:
    steps = [assistant("Calling tools: search"), user(f"Observation:\n{LEAFLET}")]
    return [system(CODING_SYSTEM), user(f"New task:\n{prompt}"), *steps, *steps]


def react(prompt: str) -> Messages:
    text = (
        "Use the tools below to find the answer.\n\nsearch: looks up web pages\npython: runs a program\n\nKeep to this "
        "form:\n\nQuestion: what you were asked\nThought: what to do next\nAction: one of search, python\n"
        "Action Input: what the tool gets\nObservation: what the tool returned\n(repeat as often as needed)\n"
        f"Final Answer: the answer\n\nBegin!\n\nQuestion: {prompt}\nThought: "
    )
    return [user(text)]


def react_later(prompt: str) -> Messages:
    (first,) = react(prompt)
    more = f"I should search.\nAction: search\nAction Input: leaflet\nObservation: {LEAFLET}\nThought: "
    return [user(first["content"] + more)]


def project_document(prompt: str) -> Messages:
    return [user(f"Contents of CLAUDE.md:\n\n{PROJECT * 3}\n{prompt}")]


def retrieved(prompt: str) -> Messages:
    return [user(f"<context>\n{LEAFLET}\n</context>\n\n{prompt}")]


def quoted_history(prompt: str) -> Messages:
    return [user(f"Conversation so far:\nUser: my build is broken\nAssistant: Run make clean.\nUser: {prompt}")]


def environment_lines(prompt: str) -> Messages:
    lines = "Current working directory: /home/dev/ledger\nOperating system: Linux\nCurrent date: 2026-11-20"
    status = "Git branch: main\n M api/routes.py\n?? notes.txt"
    return [system(CODING_SYSTEM), user(f"# Environment\n{lines}\n{status}\n\n{prompt}")]


def go_on(prompt: str) -> Messages:
    turns = [assistant("Here is the first part."), user("continue"), assistant("More of it."), user("go on, please")]
    return [system(CODING_SYSTEM), user(prompt), *turns]


WRAPPERS: Mapping[str, Wrapper] = {
    wrap.__name__: wrap
    for wrap in (
        claude_code,
        claude_code_after,
        claude_code_loop,
        codex,
        opencode,
        aider,
        openhands,
        editor,
        editor_blocks,
        smolagents,
        react,
        react_later,
        project_document,
        retrieved,
        quoted_history,
        environment_lines,
        go_on,
    )
}

SHORT_REQUESTS = (
    "fix it",
    "rename the handler",
    "now the tests",
    "make it faster",
    "undo that",
    "why does it fail?",
    "run the linter",
    "add logging",
    "bump the version",
    "split this function",
    "try again without the cache",
    "clean up the imports",
    "is this thread safe?",
    "add a flag for it",
    "use a set instead",
    "remove the dead branch",
    "make the output shorter",
    "check the return value",
    "move it to its own module",
    "write a test for it",
)
"""Requests to a coding agent that depend on its system prompt."""

CONTRACT = (
    "The tenant shall pay the rent on the first working day of each month. If the tenant is in default for more than "
    "thirty days, the landlord may terminate this agreement in writing. The parties submit to the courts of Kent. "
) * 3
CASES: tuple[tuple[str, str, Messages], ...] = (
    ("translation of a contract", "multilingual", [user(f"Translate to German: {CONTRACT}")]),
    ("translation of a contract, lines", "multilingual", [user(f"Translate to German:\n\n{CONTRACT}")]),
    ("translation of a leaflet", "multilingual", [user(f"Translate the text below into Spanish.\n\n{LEAFLET}")]),
    ("translation asked at the end", "multilingual", [user(f"{CONTRACT}\n\nTranslate this into Italian, please.")]),
    ("a recipe", "everyday", [user("Write a recipe for carbonara")]),
    ("a recipe of an agent", "everyday", claude_code("Write a recipe for carbonara")),
    ("a story behind a document", "creative_writing", project_document("Write a story about a lost robot.")),
    ("a bug behind verses", "code", aider("Fix the off-by-one bug in the pagination of the list endpoint.")),
    ("a vague request of an agent", "code", opencode("fix it")),
    ("a short request of an agent", "code", opencode("rename the handler")),
    ("what a contract means", "law", [user(f"Explain this to me:\n\n{CONTRACT}")]),
    ("side effects in a loop", "code", smolagents("Refactor the leaflet parser into two functions.")),
)
"""Name, category and messages of single cases."""
