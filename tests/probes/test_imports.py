"""Files of other tools become probes, and what no checker can score is left out with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from coe.errors import DataError
from coe.learning.evaluation.probes import probe_of
from coe.learning.probes.constraints import meets
from coe.learning.probes.imports import Skipped, cases_of, with_checker

PROMPTFOO = """
prompts:
  - "Translate to {{ language }}: {{text}}"
  - file://prompt.txt
defaultTest:
  vars: {language: French}
  assert: [{type: latency, threshold: 3000}]
tests:
  - vars: {text: Hello}
    metadata: {category: multilingual, difficulty: easy}
    assert: [{type: icontains, value: bonjour}]
  - vars: {text: Hello, language: German}
    assert:
      - {type: contains-any, value: 'Hallo, Guten Tag'}
      - {type: not-contains, value: Hello}
      - {type: word-count, value: {max: 3}}
  - vars: {text: Hello}
    assert: [{type: equals, value: Bonjour}]
  - vars: {text: Hello}
    assert: [{type: llm-rubric, value: is polite}]
  - {vars: {language: Greek}, assert: [{type: contains, value: x}]}
  - vars: {text: Hello}
"""


def cases(path: Path, form: str) -> list[dict[str, Any] | Skipped]:
    return [case for _, case in cases_of(path, form)]


def test_promptfoo_assertions_become_checkers(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(PROMPTFOO)
    found = list(cases_of(path, "promptfoo"))
    assert found[0][0] == f"{path}:prompts[1], tests[1]"
    rows = [case for _, case in found]
    assert rows[0] == {
        "prompt": "Translate to French: Hello",
        "category": "multilingual",
        "difficulty": "easy",
        "checker": "constraints",
        "constraints": {"substrings": ["bonjour"]},
    }
    assert rows[1] == {
        "prompt": "Translate to German: Hello",
        "checker": "constraints",
        "constraints": {"substrings": [["Hallo", "Guten Tag"]], "without": ["Hello"], "words": [0, 3]},
    }
    assert rows[2] == {"prompt": "Translate to French: Hello", "checker": "exact", "reference": "Bonjour"}
    reasons = [row.why for row in rows[3:] if isinstance(row, Skipped)]
    assert len(reasons) == len(rows) - 3
    assert reasons[0] == "no checker for the assertion 'llm-rubric' with 'is polite'"
    assert reasons[1] == "the prompt has variables without an inline value"
    assert reasons[2] == "the test asserts nothing about the answer"
    assert set(reasons[3:]) == {"the prompt is not inline text"}
    for row in rows[:3]:
        assert isinstance(row, dict)
        probe_of({"category": "general"} | row, ("general", "multilingual"))


def test_variables_are_replaced_in_assertions_too(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text("""
prompts: ["Say {{word}}"]
defaultTest: {vars: {word: oui}, assert: [{type: contains, value: "{{ word }}"}]}
tests:
  - assert: [{type: not-contains-any, value: ["{{word}}!", "no"]}]
  - {vars: {word: non}, assert: [{type: word-count, value: 1}]}
""")
    row, other = cases(path, "promptfoo")
    assert isinstance(row, dict)
    assert isinstance(other, dict)
    assert row["constraints"] == {"substrings": ["oui"], "without": ["oui!", "no"]}
    assert other["constraints"] == {"substrings": ["non"], "words": 1}


@pytest.mark.parametrize("kind", ["contains", "icontains", "contains-all", "icontains-any"])
def test_promptfoo_searches_inside_words_with_and_without_not(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(f"prompts: [x]\ntests: [{{assert: [{{type: {kind}, value: sun}}]}}]")
    (row,) = cases(path, "promptfoo")
    assert isinstance(row, dict)
    assert meets("A sunny day", row["constraints"]) == 1.0
    assert meets("A rainy day", row["constraints"]) == 0.0


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("{assert: [{type: equals, value: 'file://x.txt'}]}", "reads a file"),
        ("{assert: [{type: contains-any, value: ['a', '{{b}}']}]}", "without an inline value"),
        ("{assert: [{type: starts-with, value: '{% if a %}'}]}", "without an inline value"),
        ("{vars: {q: [a, b]}, assert: [{type: equals, value: a}]}", "a list or an object"),
        ("{vars: {q: {a: b}}, assert: [{type: equals, value: a}]}", "a list or an object"),
        ("{vars: 'file://x.yaml', assert: [{type: equals, value: a}]}", "the variables or the metadata are not inline"),
        ("{metadata: 3, assert: [{type: equals, value: a}]}", "the variables or the metadata are not inline"),
        ("{assert: 3}", "the assertions are not inline"),
        ("{assert: [{type: [equals], value: a}]}", "no checker for the assertion ['equals']"),
        (
            "{assert: [{type: word-count, value: {min: 2}}, {type: word-count, value: {max: 3}}]}",
            "more than one assertion about words",
        ),
        ("{assert: [{type: contains}]}", "no checker for the assertion 'contains' with None"),
    ],
)
def test_a_promptfoo_test_that_is_not_inline_is_left_out(tmp_path: Path, test: str, why: str) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(f"prompts: [x]\ntests: [{test}]")
    (case,) = cases(path, "promptfoo")
    assert isinstance(case, Skipped)
    assert why in case.why
    path.write_text(f"prompts: [x]\ndefaultTest: 'file://x.yaml'\ntests: [{test}]")
    assert cases(path, "promptfoo") == [Skipped("the test or the default test is not inline")]


def test_columns_of_a_table_are_the_fields_of_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(
        "Question,answer,category,tolerance,constraints,checker,note\n"
        '"What is 2, plus 2?",4,math,,,,x\n'
        "Which letter?,(B),math,,,,\n"
        "Capital of France?,Paris,,,,,\n"
        'Four words,,general,,"{""words"": 4}",constraints,\n'
        "Pi?,3.14,math,much,,numeric,\n"
        f"Explain.,{'word ' * 30},general,,,,\n"
    )
    rows = cases(path, "csv")
    assert rows[0] == {"prompt": "What is 2, plus 2?", "category": "math", "reference": "4", "checker": "numeric"}
    assert [row["checker"] for row in rows[:4] if isinstance(row, dict)] == [
        *("numeric", "choice", "contains", "constraints"),
    ]
    assert [isinstance(row, Skipped) for row in rows] == [False] * 4 + [True] * 2
    for row in rows[:4]:
        assert isinstance(row, dict)
        probe_of({"category": "general"} | row, ("general", "math"))


def sample(target: Any, *calls: Any, **more: Any) -> str:
    return json.dumps({"doc_id": 0, "doc": {}, "target": target, "arguments": calls} | more)


def test_samples_of_lm_eval_become_numbers_texts_and_choices(tmp_path: Path) -> None:
    settings = {"until": ["\n"]}
    chat = json.dumps([{"role": "user", "content": "1 + 1?"}])
    generation = {"gen_args_0": {"arg_0": "Q: 6 * 12?\nA:", "arg_1": settings}}
    lines = [
        sample("8 * 9 = 72\n#### 72", arguments=generation),
        sample(["Oslo", "oslo"], ["Capital of Norway?", settings]),
        sample("2", [[chat], settings]),
        sample("1", ["Sky?\nAnswer:", " green"], ["Sky?\nAnswer:", " blue"]),
        sample(1, ["Sky?\nA. green\nB. blue\nAnswer:", " A"], ["Sky?\nA. green\nB. blue\nAnswer:", " B"]),
        sample("the end", ["a long text", " continued"]),
        sample(0, ["He", " runs"], ["She", " runs"]),
        sample("word " * 40, ["Summarize.", settings]),
    ]
    path = tmp_path / "samples_task.jsonl"
    path.write_text("\n".join(lines))
    rows = cases(path, "lm-eval")
    assert rows[0] == {"prompt": "Q: 6 * 12?\nA:", "reference": "72", "checker": "numeric"}
    assert rows[1] == {"prompt": "Capital of Norway?", "reference": "Oslo", "checker": "contains"}
    assert rows[2] == {"messages": [{"role": "user", "content": "1 + 1?"}], "reference": "2", "checker": "numeric"}
    assert rows[3] == {
        "prompt": "Sky?\nAnswer:\n\nA. green\nB. blue\nAnswer with the letter only.",
        "checker": "choice",
        "reference": "B",
    }
    assert rows[4] == {"prompt": "Sky?\nA. green\nB. blue\nAnswer:", "checker": "choice", "reference": "B"}
    assert all(isinstance(row, Skipped) for row in rows[5:])
    for row in rows[:5]:
        assert isinstance(row, dict)
        probe_of({"category": "math"} | row, ("math",))


@pytest.mark.parametrize(
    ("reference", "checker"),
    [
        *(("4", "numeric"), ("-3.5", "numeric"), ("$5", "numeric"), ("12 kg", "numeric"), ("C", "choice")),
        *(("Paris", "contains"), ("12 angry men", "contains"), ("I", "choice"), ("1, 2", "contains")),
    ],
)
def test_a_reference_suggests_its_checker(reference: str, checker: str) -> None:
    row = with_checker({"prompt": "x", "reference": reference})
    assert isinstance(row, dict)
    assert row["checker"] == checker


@pytest.mark.parametrize(
    ("name", "form", "content", "why"),
    [
        ("x.csv", "csv", b"", "lacks the column prompt"),
        ("x.csv", "csv", b"text,answer\na,b\n", "it has text, answer"),
        ("x.csv", "csv", b"prompt\n\xff\n", "cannot be read as csv"),
        ("x.yaml", "promptfoo", b"a: [", "not YAML"),
        ("x.yaml", "promptfoo", b"tests: file://x.csv", "inline `prompts` and `tests`"),
        ("x.jsonl", "lm-eval", b'{"prompt": "x"}', ":1: expected a sample of lm-eval"),
        ("x.jsonl", "lm-eval", b"{", ":1: not JSON"),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path: Path, name: str, form: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        cases(tmp_path / name, form)
    assert why in str(raised.value)
    with pytest.raises(DataError, match="no such file"):
        cases(tmp_path / "missing", form)
