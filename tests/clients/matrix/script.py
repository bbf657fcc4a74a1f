"""The script of every conversation: prompts, tools, and the turn that a model takes next.

The scripted server keeps no session: a request holds its whole conversation, so the next turn follows from the request.
Prompts name a subject, by which the real router chooses the expert, and contain the marker of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ANSWER = "The result is forty-two, and here is why it holds."
"""A non-streaming answer. A stream sends it word by word."""
STEPS = 3
"""Tool steps of a loop."""
IN_STEPS = "Work in three steps."
"""Marker of a prompt that starts a tool loop."""
AT_LENGTH = "Explain every detail at length."
"""Marker of a prompt whose stream stalls after its first words, until the client leaves."""
CODE, LAW = (
    "Write a Python function that reverses a linked list.",
    "May my landlord end the tenancy agreement without notice? Explain the law.",
)
_CODE_WORD = re.compile(r"code-\d+")


def code_of(step: int) -> str:
    """The result of the tool in a step. It is not part of the call, so only an executed call can report it."""
    return f"code-{step * 37}"


def shell_of(step: int) -> str:
    """A shell command that prints the code of a step."""
    return f"echo code-$(({step} * 37))"


LOOP_ANSWER = f"Done: {' '.join(code_of(step) for step in range(1, STEPS + 1))}"
"""The answer at the end of a loop whose three results the server saw."""


@dataclass(frozen=True, slots=True)
class View:
    """The parts of a request that the script needs, in any API: users' text, names of tools, tool results."""

    text: str
    tools: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """The model's next turn: text, or one call of a tool. `stalls` is true if its stream stops after a few words."""

    text: str = ""
    tool: str = ""
    arguments: dict[str, Any] | None = None
    stalls: bool = False

    @property
    def words(self) -> list[str]:
        """The text in the pieces of a stream."""
        return re.findall(r"\S+\s*", self.text)


def next_turn(view: View) -> Turn:
    """Return the turn that follows a request. A request without tools never starts a loop: agents send such requests
    for titles and summaries."""
    if AT_LENGTH in view.text:
        return Turn(ANSWER, stalls=True)
    if IN_STEPS not in view.text or not view.tools:
        return Turn(ANSWER)
    if len(view.results) < STEPS:
        return _call(view.tools, len(view.results) + 1)
    return Turn(f"Done: {' '.join(codes_in(view.results))}")


def codes_in(results: Sequence[str]) -> list[str]:
    """Return the codes in tool results, without repetition, in order."""
    return list(dict.fromkeys(code for result in results for code in _CODE_WORD.findall(result)))


def _call(tools: Sequence[str], step: int) -> Turn:
    """Return the call of the first known tool; an answer that names the tools if none is known."""
    arguments: dict[str, dict[str, Any]] = {
        "next_code": {"step": step},
        "Bash": {"command": shell_of(step), "description": f"Step {step}"},
        "bash": {"command": shell_of(step), "description": f"Step {step}"},
        "exec_command": {"cmd": shell_of(step)},
        "shell_command": {"command": shell_of(step)},
        "shell": {"command": ["sh", "-c", shell_of(step)]},
    }
    for name in arguments:
        if name in tools:
            return Turn(tool=name, arguments=arguments[name])
    return Turn(f"No known tool among: {', '.join(tools)}")
