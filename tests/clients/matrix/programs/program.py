"""Shared parts of the programs: the environment, the tool, and the report of each feature as a line of JSON.

A program runs in the clients' own environment, so it imports nothing of CoE. Its four functions use the client as its
documentation shows. After the last feature, cancellation, the program stays until its standard input ends: a connection
that is closed by then was closed by the client and not by the end of its process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ["COE_URL"]
KEY = os.environ["COE_KEY"]
PROMPTS: dict[str, str] = json.loads(os.environ["COE_PROMPTS"])
"""The prompt of each feature."""
MAX_TURNS = 8
"""A loop that goes on beyond its three steps ends here."""
TOOL_NAME, TOOL_TEXT = "next_code", "Return the code of a step."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"step": {"type": "integer"}},
    "required": ["step"],
    "additionalProperties": False,
}


def next_code(step: int) -> str:
    """Return the code of a step."""
    return f"code-{step * 37}"


def report(**features: Callable[[], dict[str, Any]]) -> None:
    """Run the features and print what each returned, or its error."""
    for name, feature in features.items():
        try:
            found = feature()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps({"feature": name, **found}) + "\n")
        sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # clients' threads that still wait for a closed stream shall not hold the process
