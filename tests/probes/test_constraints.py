"""Each constraint on answers that meet it and on answers that miss it by little."""

from typing import Any

import pytest

from coe.measuring.checkers import meets, problem_in, same_json

POEM = "Rain on the roof\nOver the hill\nSun comes again\nEvening is still"


@pytest.mark.parametrize(
    ("constraints", "right", "wrong"),
    [
        ({"words": 3}, "One two-part word.", "One two part word."),
        ({"words": [2, 3]}, "it's fine", "it's"),
        ({"sentences": 2}, "So we wait... Yes!", "So. We wait... Yes!"),
        ({"sentences": 2}, "It costs 3.50 euros. Fine", "It costs 3. 50 euros. Fine"),
        ({"sentences": 2}, "你好。再见！", "你好。"),
        ({"words": 5}, "Saturday at 3:00 p.m. sharp", "Saturday at 3: 00 p.m. sharp"),
        ({"words": 4}, "1,000 or 2.5 U.S.", "1,000 or 2. 5 U.S."),
        ({"words": 3}, "e.g. plan A.", "e.g. plan A. B"),
        ({"sentences": 1}, "Mr. Lee, Mrs. Ray and Prof. Dr. May met at St. Paul", "He met a Mr. Lee. They spoke"),
        ({"sentences": 2}, 'At 3 p.m. we left. "Stop!" he said.', "At 3 p.m. We left. He said so."),
        ({"sentences": 2}, "no capitals. none at all.", "no Capitals. none at all."),
        ({"lines": 4}, POEM, POEM + "\nand more"),
        ({"paragraphs": 2}, "one\n \ntwo", "one\ntwo"),
        ({"line_words": [3, 4]}, POEM, POEM + "\nand"),
        ({"words_by_line": [1, 2]}, "One\n\ntwo words", "Two words\none"),
        ({"words_by_sentence": [1, 2, 1]}, "Go. Two words! End", "Go. Two words, end"),
        ({"includes": ["rain", ["sun", "moon"]]}, POEM, "Rain and sunlight"),
        ({"excludes": ["the"]}, "a theme", "The theme"),
        ({"without": ["z", ","]}, POEM, "Zebra"),
        ({"order": ["rain", "sun", "evening"]}, POEM, "sun, rain, evening"),
        ({"occurrences": {"the": 2}}, POEM, "the others, then"),
        ({"initials": "rose"}, "**R**ain\n> Over\n- Sun\n\nEvening", "Rain\nOver\nSun"),
        ({"starts_with": "Dear Ms Lee"}, "Dear Ms. Lee, thanks".replace(".", ""), "Hello, dear Ms Lee"),
        ({"ends_with": "the end"}, "So it was. **The end.**", "The end was near"),
        ({"format": "bullets"}, "- one\n- two", "- one\ntwo"),
        ({"format": "numbered"}, "1. one\n2. two", "1. one\n3. two"),
        ({"keys": ["a", "b"]}, '```json\n{"b": 1, "a": 2}\n```', 'It is {"b": 1, "a": 2}'),
        ({"case": "lower"}, "all small.", "All small."),
        ({"case": "upper"}, "ALL 3 LARGE", "ALL 3 large"),
    ],
)
def test_a_constraint_accepts_what_meets_it_and_nothing_else(
    constraints: dict[str, Any], right: str, wrong: str
) -> None:
    assert problem_in(constraints) is None
    assert meets(right, constraints) == 1.0
    assert meets(f"<think>z, no{wrong}</think>\n{right}", constraints) == 1.0
    assert meets(wrong, constraints) == 0.0
    assert meets("", constraints) == 0.0


@pytest.mark.parametrize(
    ("constraints", "why"),
    [
        ({}, "an object with some of words"),
        ({"word": 3}, "`constraints.word`: Extra inputs are not permitted"),
        ({"words": "3"}, "`constraints.words`: Input should be a valid integer"),
        ({"lines": [5, 2]}, "`constraints.lines"),
        ({"words_by_line": 3}, "should be a valid list"),
        ({"includes": ["..."]}, "not be only punctuation"),
        ({"includes": [[]]}, "`constraints.includes`"),
        ({"excludes": "the"}, "should be a valid list"),
        ({"occurrences": {"the": -1}}, "`constraints.occurrences`"),
        ({"format": "xml"}, "should be 'bullets' or 'numbered'"),
        ({"initials": "!"}, "not be only punctuation"),
    ],
)
def test_bad_constraints_are_named(constraints: dict[str, Any], why: str) -> None:
    assert why in (problem_in(constraints) or "")


@pytest.mark.parametrize(
    "chunk", [".", "a", "a-", "- ", "{", "[", '{"', "a.", "1,", "Dr. a", "1. ", "*", "\n", "'a", "```\n", "a\n\n"]
)
def test_an_answer_built_to_slow_constraints_down_is_checked_in_time(chunk: str) -> None:
    """Patterns that backtrack take minutes over these."""
    text = chunk * (400_000 // len(chunk)) + "x"
    names = ("words", "sentences", "lines", "paragraphs", "line_words")
    for constraints in ({name: 10**6} for name in names):
        assert meets(text, constraints) == 0.0
    assert meets(text, {"words_by_sentence": [1], "includes": ["y"], "occurrences": {"y": 1}}) == 0.0
    assert same_json(text, '{"a": 1}') == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"a": 1, "b": [2, 3]}', 1.0),
        ('Here it is:\n```json\n{"b": [2, 3.0], "a": 1}\n```\nDone.', 1.0),
        ('The result is {"b": [2, 3], "a": 1}.', 1.0),
        ('{"a": "1", "b": [2, 3]}', 0.0),
        ('{"a": 1, "b": [3, 2]}', 0.0),
        ('{"a": 1}', 0.0),
        ('From [1] and {x}: {"a": 1, "b": [2, 3]}. See [2] and [the notes].', 1.0),
        ('First {"a": 2}, corrected: {"a": 1, "b": [2, 3]} }', 1.0),
        ('{"a": 1, "b": [2, 3]}, or rather {"a": 2}', 0.0),
        ('{"result": {"a": 1, "b": [2, 3]}}', 0.0),
        ('[{"a": 1, "b": [2, 3]}]', 0.0),
        ('{"a": 1, "b": [2, 3]} {"a": NaN}', 1.0),
        ("none", 0.0),
    ],
)
def test_json_is_compared_by_its_values(answer: str, score: float) -> None:
    assert same_json(answer, '{"a": 1, "b": [2, 3]}') == score
