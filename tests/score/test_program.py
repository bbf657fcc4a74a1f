"""Finding the program in an answer."""

import pytest

from coe.recipes.final_answers import program_of

DEFINITION = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "answer",
    [
        DEFINITION,
        f"Sure!\n```python\n{DEFINITION}```\nThat is all.",
        f"```\n{DEFINITION}```",
        f"~~~py\n{DEFINITION}~~~",
        f"Here:\n\n{DEFINITION}\nThis adds one. It's simple.",
        f"```python\n{DEFINITION}",
        f"```bash\npip install it\n```\n```python\n{DEFINITION}```\nUse it:\n```python\nprint(f(input()))\n```",
    ],
)
def test_the_definition_is_found_without_prose_shell_and_examples(answer: str) -> None:
    found = program_of(answer)
    names: dict[str, object] = {}
    exec(compile(found, "found", "exec"), names)
    assert names["f"](1) == 2  # type: ignore[operator]
    assert "input" not in found
    assert "simple" not in found


def test_definitions_in_several_blocks_belong_together() -> None:
    assert program_of("```python\ndef g(): ...\n```\nand\n```python\ndef f(): g()\n```").count("def") == 2


def test_a_broken_block_is_kept_so_that_its_error_is_reported() -> None:
    assert program_of("```python\ndef f(:\n```").strip() == "def f(:"


@pytest.mark.parametrize("answer", ["", "I cannot help with that.", "```json\n{}\n```", "def is a keyword, isn't it?"])
def test_an_answer_without_a_program_has_none(answer: str) -> None:
    assert program_of(answer) == ""
