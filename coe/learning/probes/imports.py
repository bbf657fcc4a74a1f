"""Reads probes from the files of other tools: CSV tables, promptfoo configurations and samples of lm-eval.

Each case becomes a row as `probe_of` reads it, without a category where the file names none; a case that no checker
can score becomes a Skipped with the reason. A file that is not of its format raises DataError.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError
from coe.experts.recipes.final_answers.choices import chosen
from coe.experts.recipes.final_answers.numbers import unclear
from coe.learning.evaluation.tables import MAX_CSV_FIELD_CHARACTERS, numbered_rows
from coe.learning.probes.constraints import problem_in

MAX_REFERENCE_WORDS = 12
"""A longer reference is free text, which only a judge could compare."""
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that is not imported."""

    why: str


Case = tuple[str, dict[str, Any] | Skipped]
"""The place of a case in its file, and its row."""
Row = dict[str, Any]


def cases_of(path: Path, form: str) -> Iterator[Case]:
    """Yield the cases of a file of one of FORMATS. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        for place, case in FORMATS[form](path):
            yield f"{path}:{place}", case
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as {form}: {error}") from None


def format_of(path: Path) -> str | None:
    """Return the format that a file's suffix suggests."""
    return {".csv": "csv", ".yaml": "promptfoo", ".yml": "promptfoo", ".jsonl": "lm-eval"}.get(path.suffix)


def with_checker(row: Row) -> Row | Skipped:
    """Return a row with a reference and the checker that fits it: a letter, a number, or a short text."""
    reference = str(row["reference"]).strip()
    if "checker" in row:
        return row
    if unclear(reference) is None and re.fullmatch(r"\D{0,3}[\d.,/eE+-]+\D{0,3}", reference.split("####")[-1].strip()):
        return row | {"checker": "numeric", "reference": reference.split("####")[-1].strip()}
    if re.fullmatch(r"\(?[A-J]\)?", reference) and chosen(reference):
        return row | {"checker": "choice", "reference": chosen(reference)}
    if 0 < len(reference.split()) <= MAX_REFERENCE_WORDS:
        return row | {"checker": "contains", "reference": reference}
    return Skipped("its reference is empty or free text, which needs its own checker")


# ---------------------------------------------------------------------------------------------------------------- CSV

_ALIASES = {
    "question": "prompt",
    "input": "prompt",
    "answer": "reference",
    "expected": "reference",
    "target": "reference",
    "__expected": "reference",
}
_FIELDS = ("id", "prompt", "category", "difficulty", "checker", "reference", "tests", "tolerance", "constraints")


def _csv_cases(path: Path) -> Iterator[tuple[int, Row | Skipped]]:
    """Columns are the fields of a probe; a few other names of prompt and reference are known too."""
    csv.field_size_limit(MAX_CSV_FIELD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
    names = {name: _ALIASES.get(name.strip().lower(), name.strip().lower()) for name in reader.fieldnames or ()}
    if "prompt" not in names.values():
        raise DataError(f"{path}: lacks the column prompt; it has {', '.join(names) or 'no columns'}")
    for values in reader:
        row = {names[name]: value for name, value in values.items() if name in names and value}
        yield reader.line_num, _csv_row({name: row[name] for name in _FIELDS if name in row})


def _csv_row(row: Row) -> Row | Skipped:
    try:
        if "tolerance" in row:
            row["tolerance"] = float(row["tolerance"])
        if "constraints" in row:
            row["constraints"] = orjson.loads(row["constraints"])
    except ValueError as error:
        return Skipped(f"tolerance must be a number and constraints a JSON object: {error}")
    return with_checker(row) if "reference" in row else row


# ---------------------------------------------------------------------------------------------------------- promptfoo

_NO_QUALITY = ("latency", "cost")
"""Assertions about the call, not the answer."""


def _promptfoo_cases(path: Path) -> Iterator[tuple[str, Row | Skipped]]:
    """Every inline prompt with every inline test; `file://` and scripts are not run."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("tests"), list):
        raise DataError(f"{path}: expected a promptfoo configuration with inline `prompts` and `tests`")
    prompts = document.get("prompts")
    usual = document.get("defaultTest") or {}
    pairs = product(enumerate(prompts if isinstance(prompts, list) else [prompts], 1), enumerate(document["tests"], 1))
    for (of_prompt, prompt), (of_test, test) in pairs:
        yield f"prompts[{of_prompt}], tests[{of_test}]", _promptfoo_row(prompt, test, usual)


def _promptfoo_row(prompt: Any, test: Any, usual: Any) -> Row | Skipped:
    if isinstance(prompt, dict):
        prompt = prompt.get("raw")
    if not isinstance(prompt, str) or prompt.startswith("file://"):
        return Skipped("the prompt is not inline text")
    if not isinstance(test, dict) or not isinstance(usual, dict):
        return Skipped("the test or the default test is not inline")
    variables, metadata = [one.get("vars") or {} for one in (usual, test)], test.get("metadata") or {}
    asserted = [one.get("assert") or [] for one in (usual, test)]
    if not all(isinstance(one, dict) for one in (*variables, metadata)):
        return Skipped("the variables or the metadata are not inline")
    if not all(isinstance(one, list) for one in asserted):
        return Skipped("the assertions are not inline")
    values = variables[0] | variables[1]
    if any(isinstance(value, list | dict) for value in values.values()):
        return Skipped("a variable is a list or an object")
    text = _filled(prompt, values)
    if _is_open(text):
        return Skipped("the prompt has variables without an inline value")
    row = _asserted(_filled([one for checks in asserted for one in checks if not _is_of_call(one)], values))
    if isinstance(row, Skipped):
        return row
    return {"prompt": text} | {key: metadata[key] for key in ("category", "difficulty") if key in metadata} | row


def _is_of_call(check: Any) -> bool:
    return isinstance(check, dict) and check.get("type") in _NO_QUALITY


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    """Return a prompt or an assertion with `{{ name }}` replaced by values."""
    if isinstance(part, str):
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: str(values.get(name[1], name[0])), part)
    if isinstance(part, dict):
        return {key: _filled(value, values) for key, value in part.items()}
    return [_filled(one, values) for one in part] if isinstance(part, list) else part


def _is_open(part: Any) -> bool:
    """Return whether a text, or one in a list or an object, has a variable, a block or the path of a file."""
    if isinstance(part, str):
        return any(mark in part for mark in ("{{", "{%", "file://"))
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return any(map(_is_open, parts))


def _asserted(checks: Sequence[Any]) -> Row | Skipped:
    """Return the checker that stands for a list of assertions."""
    if not checks:
        return Skipped("the test asserts nothing about the answer")
    constraints: dict[str, Any] = {}
    for check in checks:
        kind, value = (check.get("type"), check.get("value")) if isinstance(check, dict) else (None, None)
        if _is_open(value):
            return Skipped(f"the assertion {kind!r} has variables without an inline value, or reads a file"[:200])
        if kind == "equals" and len(checks) == 1 and isinstance(value, str | int | float):
            return {"checker": "exact", "reference": str(value)}
        found = _CONSTRAINTS[kind](value) if isinstance(kind, str) and kind in _CONSTRAINTS else None
        if not found or problem_in(found):
            return Skipped(f"no checker for the assertion {kind!r} with {value!r}"[:200])
        for name, wanted in found.items():
            several = name in ("substrings", "without")
            if name in constraints and not several:
                return Skipped(f"more than one assertion about {name}")
            constraints[name] = [*constraints.get(name, ()), *wanted] if several else wanted
    return {"checker": "constraints", "constraints": constraints}


def _texts(value: Any) -> list[str]:
    """Return a text, a number or a list of them as texts; without the parts that are neither."""
    parts = value if isinstance(value, list) else [value]
    return [str(one) for one in parts if isinstance(one, str | int | float)]


def _several(value: Any) -> list[str]:
    """Return a list of texts, which may be written as one text with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else _texts(value)


def _word_count(value: Any) -> Row:
    if isinstance(value, dict):
        return {"words": [value.get("min", 0), value.get("max", 10**6)]}
    return {"words": value}


_CONSTRAINTS: Mapping[Any, Callable[[Any], Row]] = {
    **dict.fromkeys(("contains", "icontains"), lambda value: {"substrings": _texts(value)}),
    **dict.fromkeys(("contains-all", "icontains-all"), lambda value: {"substrings": _several(value)}),
    **dict.fromkeys(("contains-any", "icontains-any"), lambda value: {"substrings": [_several(value)]}),
    **dict.fromkeys(("not-contains", "not-icontains"), lambda value: {"without": _texts(value)}),
    **dict.fromkeys(("not-contains-any", "not-icontains-any"), lambda value: {"without": _several(value)}),
    "starts-with": lambda value: {"starts_with": value},
    "is-json": lambda value: {"format": "json"} if value is None else {},
    "word-count": _word_count,
}


# ------------------------------------------------------------------------------------------------------------ lm-eval


def _lm_eval_cases(path: Path) -> Iterator[tuple[int, Row | Skipped]]:
    """Lines of `samples_TASK_DATE.jsonl`, as `lm_eval --log_samples` writes them."""
    for number, sample in numbered_rows(path):
        if not isinstance(sample, dict) or not {"arguments", "target"} <= set(sample):
            raise DataError(f"{path}:{number}: expected a sample of lm-eval with `arguments` and `target`")
        yield number, _lm_eval_row(sample)


def _lm_eval_row(sample: Mapping[str, Any]) -> Row | Skipped:
    calls = _arguments(sample["arguments"])
    if not calls or not all(calls) or not isinstance(calls[0][0], str | list):
        return Skipped("it has no prompt")
    asked, target = _prompt_row(calls[0][0]), sample["target"]
    if len(calls) == 1:
        found = with_checker(asked | {"reference": str(target[0] if isinstance(target, list) and target else target)})
        return Skipped("its prompt is the context of a likelihood") if _is_likelihood(calls[0]) else found
    options = [str(call[1]).strip() for call in calls if len(call) > 1]
    same = all(call[0] == calls[0][0] for call in calls)
    right = int(target) if str(target).isdigit() else -1
    if not same or len(options) != len(calls) or not 0 <= right < len(options) <= len(LETTERS) or "prompt" not in asked:
        return Skipped("its choices differ in their context, are too many, or have no right one")
    if options == list(LETTERS[: len(options)]):
        return asked | {"checker": "choice", "reference": LETTERS[right]}
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    prompt = f"{asked['prompt'].rstrip()}\n\n{listed}\nAnswer with the letter only."
    return {"prompt": prompt, "checker": "choice", "reference": LETTERS[right]}


def _arguments(arguments: Any) -> list[list[Any]]:
    """Return the arguments of each request of a sample: lists, or `{"gen_args_0": {"arg_0": ...}}`."""
    requests = arguments.values() if isinstance(arguments, dict) else arguments if isinstance(arguments, list) else ()
    return [list(one.values()) if isinstance(one, dict) else one for one in requests if isinstance(one, dict | list)]


def _is_likelihood(call: Sequence[Any]) -> bool:
    return len(call) < 2 or not isinstance(call[1], dict)


def _prompt_row(prompt: str | list[Any]) -> Row:
    """Return a prompt, or the messages of a chat, which lm-eval writes as JSON, also as a list of one text."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt.startswith("[{"):
        try:
            prompt = orjson.loads(prompt)
        except orjson.JSONDecodeError:
            return {"prompt": prompt}
    if isinstance(prompt, str):
        return {"prompt": prompt}
    turns = [{key: turn.get(key) for key in ("role", "content")} for turn in prompt if isinstance(turn, dict)]
    return {"messages": turns}


FORMATS: Mapping[str, Callable[[Path], Iterator[tuple[Any, Row | Skipped]]]] = {
    "csv": _csv_cases,
    "promptfoo": _promptfoo_cases,
    "lm-eval": _lm_eval_cases,
}
