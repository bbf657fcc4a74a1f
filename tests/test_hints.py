"""Problems of single values in experts.yaml name the word that was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.errors import ConfigError
from coe.registry import load

DECLARED = """\
version: 1
categories: [{name: general, description: g}]
experts:
  - name: a
    model: m
    runtime: external
    base_url: http://h/v1
assignment: {general: a}
"""


def problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "experts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path, environ={})
    return error.value.problems


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("runtime: openai", "not 'openai'; did you mean 'external'?"),
        ("runtime: lmstudio", "did you mean 'external'?"),
        ("runtime: llama-server", "did you mean 'llama.cpp'?"),
        ("runtime: anthropic", "did you mean 'litellm'?"),
        ("runtime: External", "did you mean 'external'?"),
        ("runtime: vlmm", "did you mean 'vllm'?"),
        ("runtime: external\n    capabilities: [vision]", "did you mean 'images'?"),
        ("runtime: external\n    capabilities: [function_calling]", "did you mean 'tools'?"),
        ("runtime: external\n    capabilities: [json-schema]", "did you mean 'json_schema'?"),
        ("runtime: external\n    apis: [openai]", "did you mean 'chat'?"),
        ("runtime: external\n    apis: [anthropic]", "did you mean 'messages'?"),
        ("runtime: external\n    api_base: http://h", "unknown key 'api_base'; did you mean 'base_url'?"),
        ("runtime: external\n    max_model_len: 4096", "did you mean 'context_length'?"),
        ("runtime: external\n    capabilities: tools", "expected a list, such as [a, b]"),
        ("runtime: external\n    prices: 3", "expected keys with values, such as {a: b}"),
    ],
)
def test_the_word_that_was_meant_is_named_on_its_line(tmp_path: Path, line: str, hint: str) -> None:
    (problem,) = problems(tmp_path, DECLARED.replace("runtime: external", line))
    assert problem.startswith(f"experts.yaml:{6 + line.count(chr(10))}: ")
    assert hint in problem


def test_a_word_near_none_gets_no_hint_and_no_more_than_its_beginning(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, DECLARED.replace("runtime: external", f"runtime: {'q' * 500}"))
    assert "did you mean" not in problem
    assert problem.endswith(f"not {'q' * 64!r}")


def test_a_list_that_is_empty_is_still_too_short(tmp_path: Path) -> None:
    assert any(
        "at least 1" in problem
        for problem in problems(tmp_path, DECLARED.replace("[{name: general, description: g}]", "[]"))
    )
