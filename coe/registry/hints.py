"""Formats problems of experts.yaml, without values of variables, and suggests the name that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from coe.registry.yaml_source import KeyPath

QUOTED_CHARACTERS = 64
"""Characters of a wrong value that a problem repeats."""
MIN_SCRUBBED_CHARACTERS = 4
"""Values of variables that are at least so long are removed from problems."""
_QUOTED = re.compile(r"'([^']*)'")
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "external": ("openai", "openrouter", "groq", "lmstudio", "http", "remote", "api"),
    "llama.cpp": ("llama-server", "gguf"),
    "litellm": ("anthropic", "azure", "bedrock", "vertex_ai", "gemini"),
    "images": ("vision",),
    "tools": ("function_calling",),
    "messages": ("anthropic",),
    "chat": ("openai",),
    "base_url": ("api_base", "url"),
    "context_length": ("max_model_len", "context_window"),
}
"""Names in experts.yaml and their synonyms in other products. A name is suggested only where it is allowed."""
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "expected a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "expected keys with values, such as {a: b}"),
}
"""Problems with the kind of a value, by pydantic's type of error, which names Python's types."""


def problems_of(root: type[BaseModel], errors: Sequence[ErrorDetails]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key path and the problem of each error that validating as the model `root` raised.

    A list that is too short only because its items are wrong is left out.
    """
    for error in errors:
        place = error["loc"]
        # pydantic does not count wrong items of a tuple, so it also reports the tuple as too short.
        if error["type"] != "too_short" or not any(
            one["loc"] != place and one["loc"][: len(place)] == place for one in errors
        ):
            yield place, _message(root, **error)


def _message(root: type[BaseModel], *, loc: KeyPath, type: str, msg: str, **more: Any) -> str:  # noqa: A002
    """Return a problem of a single value, from the fields of pydantic's error about the model `root`."""
    key = ".".join(map(str, loc))
    if type == "extra_forbidden":
        return f"unknown key {str(loc[-1])!r}{nearest(str(loc[-1]), _known_keys(root, loc[:-1]))}"
    if type == "missing":
        return f"{key} is missing"
    problem = f"{key}: {_KINDS.get(type) or msg[0].lower() + msg[1:]}"
    if type == "literal_error" and isinstance(value := more.get("input"), str):
        allowed = _QUOTED.findall(str(more.get("ctx", {}).get("expected", "")))
        problem += f", not {value[:QUOTED_CHARACTERS]!r}{_did_you_mean(value, allowed)}"
    return problem


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message for an unknown word: the word that was meant, or all known ones."""
    return _did_you_mean(word, known) or (f"; known: {', '.join(known)}" if known else "")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message with the word that was probably meant; empty if none is near."""
    lowered = word.lower().strip()
    same = [one for one in known if one == lowered or lowered in _SYNONYMS.get(one, ())]
    close = same or get_close_matches(lowered, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_keys(root: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that the model at a path defines."""
    model: Any = root
    for step in path:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or BaseModel
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)


def without_values(problem: str, text: str, environ: Mapping[str, str]) -> str:
    """Return a problem of a text with the names of the text's variables for their values, as far as a problem repeats
    them. Shorter values than MIN_SCRUBBED_CHARACTERS stay."""
    used = (one for one in environ.items() if f"${{{one[0]}}}" in text or f"os.environ/{one[0]}" in text)
    for name, value in sorted(used, key=lambda one: -len(one[1])):  # one may be part of another
        for part in (value, value[:QUOTED_CHARACTERS]):
            for form in (part, repr(part)[1:-1]):
                if len(form) >= MIN_SCRUBBED_CHARACTERS:
                    problem = problem.replace(form, f"${{{name}}}")
    return problem
