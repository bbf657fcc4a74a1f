"""Writes docs/guides/clients-matrix.md from the results of a run."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.clients.matrix.clients import CLIENTS, FEATURES, GAPS, Cell, Client
from tests.clients.matrix.environment import ROOT
from tests.clients.matrix.service import NATIVE, TRANSLATED

HERE = Path(__file__).parent
DOCUMENT = ROOT / "docs" / "guides" / "clients-matrix.md"
_HEAD = """\
# Tested clients

`make test-clients` installs each client below in the version shown, runs it against a gateway with
`model: auto` and a trained router, and writes this page. A scripted model server stands in for the
experts.

- **chat**: the whole answer arrives.
- **stream**: the answer arrives in several pieces.
- **tools**: three tool calls, each executed by the client; the expert sees all results, and all
  requests of the loop reach the same expert.
- **cancel**: the client leaves a stream; the gateway closes the expert's connection, and no request
  stays in flight.

[Clients](clients.md) describes their configuration.
"""


def page(results: Mapping[Cell, bool]) -> str:
    """Return the page. `results` says of every cell whether it works."""
    notes = list(dict.fromkeys(GAPS[cell].text for cell, works in results.items() if not works))
    parts = [_HEAD]
    for title, expert in (
        ("Experts that speak the client's API", NATIVE),
        ("Experts that speak Chat Completions alone", TRANSLATED),
    ):
        rows = [_row(client, expert, results, notes) for client in CLIENTS if expert in client.experts]
        parts.append(f"## {title}")
        parts.append("\n".join((_line("client", "API", *FEATURES), "|---" * 6 + "|", *rows)))
    parts += [textwrap.fill(f"[{number}] {text}", 100) for number, text in enumerate(notes, 1)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(client: Client, expert: str, results: Mapping[Cell, bool], notes: list[str]) -> str:
    cells = []
    for feature in FEATURES:
        cell = (client.key, expert, feature)
        if cell not in results:
            cells.append("")
        else:
            cells.append("yes" if results[cell] else f"no [{notes.index(GAPS[cell].text) + 1}]")
    name, comma, use = client.name.partition(",")
    return _line(f"{name} {versions()[client.index, client.package]}{comma}{use}", client.api, *cells)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def versions() -> dict[tuple[str, str], str]:
    """Return the pinned version of each package by index and name."""
    pins = re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)$", (HERE / "requirements.txt").read_text(), re.MULTILINE)
    npm: dict[str, str] = json.loads((HERE / "package.json").read_text())["dependencies"]
    return {("pypi", name): version for name, version in pins} | {("npm", name): npm[name] for name in npm}
