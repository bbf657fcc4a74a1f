"""Names in sentences: inline code that looks like a command, header, metric, variable, key or path must be one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from scripts.reference import environment, experts_yaml, headers, metrics
from scripts.reference.sources import declaration_schema
from tests.docs.command_line import unknown_words
from tests.docs.pages import ROOT

_HEADER = re.compile(r"x-coe-[a-z-]+")
_METRIC = re.compile(r"(coe_[a-z_]+)(\{.*\})?")
_VARIABLE = re.compile(r"(COE_[A-Z_]+)(=.*)?")
_KEY = re.compile(r"([a-z_]+)((?:\.[a-z_]+)+)(: .*)?")
_PATH = re.compile(r"(?:coe|gateway|routers|scripts|tests|deploy|benchmarks|docs|examples)/[\w./-]+")
_POINT = re.compile(r"coe/(NAME|fast|best)")
"""Model names of operating points, in examples."""
_SUFFIX = re.compile(r"\.(md|py|json|yaml|yml|toml|txt|sqlite|sock|css|js|html|svg|parquet|jsonl|csv|conf|log)$")


def mistakes(text: str) -> Iterator[str]:
    """Yield the errors of a piece of inline code."""
    if text.startswith("coe "):
        yield from _command(text)
    elif _HEADER.fullmatch(text) and text not in headers.names():
        yield f"no header {text}"
    elif (metric := _METRIC.fullmatch(text)) and metric[1] not in metrics.names():
        yield f"no metric {metric[1]}"
    elif (variable := _VARIABLE.fullmatch(text)) and variable[1] not in environment.names():
        yield f"no variable {variable[1]}"
    elif _PATH.fullmatch(text) and not _POINT.fullmatch(text) and not (ROOT / text).exists():
        yield f"no {text} in the repository"
    elif (key := _KEY.fullmatch(text)) and key[1] in declaration_schema()["properties"] and not _SUFFIX.search(text):
        path = f"{key[1]}{key[2]}"
        if path not in experts_yaml.key_paths():
            yield f"experts.yaml has no key {path}"


def _command(text: str) -> Iterator[str]:
    try:
        words = shlex.split(text)[1:]
    except ValueError:
        words = text.split()[1:]
    yield from unknown_words(words)
