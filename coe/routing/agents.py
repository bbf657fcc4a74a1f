"""Detects that a coding agent sends a request, by its tools, its system prompt, and the paths and diffs in its turns.

The same words mean another thing in an agent: "add German translations" is about a program. The router learns what
agents are asked from prompts that end with the line CODING_AGENT, in all categories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from coe.core import Chat
from coe.routing.phrases import WORDS

CODING_AGENT = "[coding agent]"
"""Last line of the routed text of a coding agent's request."""
MAX_TOOLS = 256
"""Tools of a request whose names are read."""
MAX_SYSTEM_CHARACTERS = 6000
MAX_TURNS, MAX_TURN_CHARACTERS = 8, 2000
"""The newest messages in which paths and diffs are searched, and characters of each."""
MIN_SIGNS = 3

_WORDS = re.compile(
    r"\b(?:codebase|repositor(?:y|ies)|source code|git|commit|pull request|lint|unit tests?|shell command|working "
    r"directory|apply[ _]patch|search/replace|refactor|compiler?|software engineer\w*+|pair programm\w*+"
    r"|coding (?:agent|assistant)|terminal|command[ -]line)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"(?<![\w./-])[\w./-]{2,80}\.(?:py|tsx?|jsx?|go|rs|java|cs?|cpp|hp?p?|rb|php|kt|swift|sh|sql|css|vue|toml|ya?ml)\b"
    r"|^@@ -\d|^<{7} |^\+\+\+ |^diff --git",
    re.MULTILINE,
)


def is_coding_agent(chat: Chat) -> bool:
    """True if the request comes from an agent that works on code."""
    signs = len({name.lower() for name in tool_names(chat)} & WORDS["agent_tools"])
    if signs >= MIN_SIGNS:
        return True
    system = "\n".join(one.text for one in chat.messages[:2] if one.role in ("system", "developer"))
    signs += _count_words(system[:MAX_SYSTEM_CHARACTERS])
    if not signs or signs >= MIN_SIGNS:
        return signs >= MIN_SIGNS
    turns = (one.text[:MAX_TURN_CHARACTERS] for one in chat.messages[-MAX_TURNS:])
    return signs + len(set(chain.from_iterable(map(_CODE.findall, turns)))) >= MIN_SIGNS


@lru_cache(maxsize=256)  # a system prompt comes with every request of its application, and takes a millisecond
def _count_words(system: str) -> int:
    return len({word.lower() for word in _WORDS.findall(system)})


def tool_names(chat: Chat) -> Iterator[str]:
    """The names of the first tools that a request declares; the type for a tool of the provider's own."""
    declared = chat.fields.get("tools") or chat.fields.get("functions")
    for tool in declared[:MAX_TOOLS] if isinstance(declared, list) else ():
        if isinstance(tool, dict):
            nested = tool.get(str(tool.get("type")))
            name = tool.get("name") or (nested.get("name") if isinstance(nested, dict) else tool.get("type"))
            if isinstance(name, str):
                yield name
