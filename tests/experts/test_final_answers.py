"""The final answer of a response: equal meanings give equal strings, and nothing gives a false one."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.recipes.final_answers import MAX_READ_CHARACTERS, final_answer

SAME = {
    "B": [
        *("B", "b.", "(B)", "[B]", "**B**", "B) Paris", "**B. Paris**", "Option B", "$B$"),
        *("The answer is (B)", "Answer: b.", "The correct answer is **B**", "Let me think.\n\nSo it must be B."),
        *("$\\boxed{\\text{B}}$", "<think>A? No.</think>B", "答案是B。", "选B", "<answer>B</answer>", "x\ny\n\n**B**"),
        *("答えはBです。", "La réponse est B, car A est faux.", "B、氩气", "(A) is wrong, so is (C); I choose (B)"),
        *("First: the answer is (A). No: the answer is (B).", "The answer is B because A is wrong.", "B\n\nIt is red."),
    ],
    "1000.5": [
        *("1000.5", "$1,000.50", "1.0005e3", "1.000,50", "1000.5 dollars", "**1000.5**", "+1000.5", "€1000.5"),
        *("The answer is $1,000.50.", "\\boxed{1000.5}", "It is 1000.5.", "2001/2", "1.0005 × 10^3", "１０００.５"),
    ],
    "0.5": [
        *("0.5", ".5", "1/2", "½", "50 %", "50%", "50 percent", "50\\%", "\\frac{1}{2}", "$\\frac{1}{2}$", "x = 0.5"),
        *("\\boxed{\\dfrac{1}{2}}", "#### 0.5", "5e-1", "The probability is 1/2.", "2^-1"),
    ],
    "42": [
        *("42", "42.0", "4.2e1", "84/2", "$42$", "\\(42\\)", "42 eggs", "42 km", "42 km/h", "42 m^2", "42 \\text{ km}"),
        *("She has 42 eggs left.", "It is about 42.", "The answer is 42.", "The answer is 42 because 6*7.", "#### 42"),
        *("Final answer:\n\n42", "**Answer:** 42", "## Answer\n42", "答案：42", "The answer's\n\n42"),
        *("Long work.\n\nTherefore, she has 42 eggs.", "Steps:\n6*7 = 42", "5 then 7\n\nSo the total is **42** eggs"),
        *("```\n42\n```", "```python\nprint(6*7)\n```\nThe answer is 42.", "The answer to the question is: 42"),
    ],
    "2.5": ["2.5", "Das Ergebnis ist 2,5.", "etwa 2,5 kg", "La respuesta es 2,5", "环境温度是2.5", "5/2"],
    "x^2": ["x^2", "x^{2}", "\\boxed{x^{2}}", "$x^2$", "The answer is $x^{2}$."],
    "-3": ["-3", "−3", "The answer is -3.", "-6/2", "\\boxed{-3}"],
    "1.5": ["1.5", "3/2", "1½", "The answer is 3/2 cups."],
    "5000000": ["5000000", "5,000,000", "5e6"],
    "5 million": ["5 million", "5 Million."],
    "yes": ["yes", "Yes.", "YES", "**Yes**", "Yes, it is.", "Answer: Yes", "Yes, because it is blue.\nAnd so on."],
    "no": ["no", "No.", "No. It is not.", "Answer: No, it is not", "The answer is **no**."],
    "true": ["true", "True.", "TRUE", "Reasons.\n\nAnswer: **True**"],
    '{"a":1,"b":[1,2]}': [
        *('{"a": 1, "b": [1, 2]}', '{"b":[1.0,2],"a":1}', '```json\n{"b": [1, 2],\n "a": 1}\n```'),
        *('Here it is:\n```json\n{"a":1,"b":[1,2]}\n```\nDone.', '```\n{"a":1e0,"b":[1,2]}\n```'),
    ],
    "paris": [
        *("Paris", "PARIS!", "'Paris'", "The answer is Paris.", "**Paris**", "Answer: Paris"),
        *("\\boxed{\\text{Paris}}", "The answer is Paris (France's capital).", "Ｐａｒｉｓ"),
    ],
    "united states": ["the United States", "United States", "united states.", "The answer is the United States."],
    "well known author": ["A well-known author", "well known author", "the well-known  author."],
    "mr smith": ["Mr. Smith", "The answer is Mr. Smith.", "mr smith"],
    "1 2": ["(1, 2)", "(1,2)", "1, 2"],
    "\\frac{\\sqrt{3}}{2}": ["\\frac{\\sqrt{3}}{2}", "\\boxed{\\dfrac{\\sqrt{3}}{2}}", "$\\frac{\\sqrt{3}}{2}$"],
}


@pytest.mark.parametrize(("answer", "text"), [(answer, text) for answer, texts in SAME.items() for text in texts])
def test_responses_with_the_same_meaning_give_the_same_string(answer: str, text: str) -> None:
    assert final_answer(text) == answer
    assert final_answer(answer) == answer


@pytest.mark.parametrize(
    "text",
    [
        *("", " \n", "...", "I'm sorry, but I can't help with that.", "I’m sorry, I can’t say.", "Sorry, no."),
        *("I cannot determine this.", "As an AI, I have no opinion.", "I don't know.", "I'm not sure about that"),
        *("抱歉，我无法回答", "Es tut mir leid, das geht nicht", "Je ne sais pas", "Answer: I do not know"),
        *("<think>Is it B? The answer is (B)", "```python\ndef f(", '{"a": 1, "b', "\\boxed{"),
        *("Once upon a time there was a king. " * 20, "Dear Ann,\n\nThanks for your letter.\n\nBest,\nBob"),
        *("A. red\nB. green\nC. blue", "Ingredients:\n\n- 2 eggs\n- 3 cups of flour", "1. Mix.\n2. Stir.\n3. Bake."),
        *("It is an old town.\nIt has a market, a church, and 500 inhabitants.", "Two:\n```js\na\n```\n```js\nb\n```"),
        "Yes, of course! " + "Here is a verse for you. " * 20,
        "word " * 20,
        "x" * (MAX_READ_CHARACTERS + 1),
    ],
)
def test_empty_refused_cut_off_and_long_free_text_have_no_answer(text: str) -> None:
    assert final_answer(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("Vitamin C", "C"), ("C++", "C"), ("C#", "C"), ("The answer is C++.", "C"), ("The answer is A dog.", "A")),
        *(("J. K. Rowling", "J. R. R. Tolkien"), ("Apollo 11", "11"), ("5x", "5"), ("5 pm", "5 am"), ("3:45", "3")),
        *(("5 or 6", "5"), ("10-20", "10"), ("3", "-3"), ("July 4, 1776", "1776"), ("5", "5 million"), ("5π", "5")),
        *(("The answer is Mr. Smith.", "The answer is Mr. Jones."), ("yes", "no"), ("true", "yes")),
        *(("It rained in 2020 in Paris", "It rained in 2020 in Lyon"), ("x = 5 and y = 6", "x = 4 and y = 6")),
        *(('{"a": 1}', '{"a": 2}'), ("[1, 2]", "[2, 1]")),
        *(("The answer is not B.", "B"), ("123456789012345678901", "123456789012345678902"), ("5 %", "5")),
        *(("The answer is not 5.", "5"), ("It is more than 5.", "5"), ("She has at least 5 eggs.", "5")),
        *(("1/2/2020", "1/2"), ("\\sqrt{2}", "2"), ("2^10", "10"), ("1e400", "1e401")),
    ],
)
def test_different_answers_give_different_strings(one: str, other: str) -> None:
    assert final_answer(one) != final_answer(other)


def test_the_last_statement_counts() -> None:
    assert final_answer("The answer is 5.\nWait. The answer is 6, not 5.\n\nFinal answer: 7") == "7"
    assert final_answer("\\boxed{1} and then \\boxed{2}") == "2"
    assert final_answer("#### Step 1\nAdd.\n#### 12") == "12"
    assert final_answer("#### Introduction\n" + "Some prose. " * 40) is None


# ---------------------------------------------------------------------------------------------------------- properties

PIECES = st.sampled_from(
    [
        *("The answer is ", "answer:", "\n", "\n\n", "(B)", "**", "\\boxed{", "}", "{", "[", "]", '"a":', "```", "~~~"),
        *("```python\n", "\n```", "def f(x):\n    return x", "####", "1,000", "1/2", "50 %", "-", ".", "=", "<think>"),
        *("</think>", "<answer>", "</answer>", "yes", "No, ", "so ", "I'm sorry", "A. ", "B) ", "C++", "the ", "Paris"),
        *("答案是", "选", "réponse est ", " because ", "'", "\\text{", "\\frac{1}{2}", "$", "½", "٣", "\ud800", "\0"),
    ]
)
RESPONSES = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=14).map("".join))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text('abc "\\é', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(RESPONSES)
@settings(max_examples=300)
def test_the_form_of_a_form_is_itself_and_nothing_raises(text: str) -> None:
    found = final_answer(text)
    assert found is None or (found and final_answer(found) == found)


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_equal_numbers_have_equal_forms(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    plain = f"{'-' if units < 0 else ''}{abs(units) // 10**places}.{abs(units) % 10**places:0{max(places, 1)}d}"
    grouped = f"{'-' if units < 0 else ''}{abs(units) // 10**places:,}.{abs(units) % 10**places:0{max(places, 1)}d}"
    texts = [plain, grouped, f"{plain}0", f"{units}e-{places}", f"{units}/{10**places}", f"{units * 100}e-{places} %"]
    texts += [f"The answer is {plain}.", f"\\boxed{{{grouped}}}", f"It is {plain} km", f"#### {plain}"]
    forms = {final_answer(text) for text in texts}
    assert len(forms) == 1
    assert Fraction(str(forms.pop())) == pytest.approx(value, rel=1e-11)


@given(JSON.filter(lambda value: isinstance(value, list | dict)))
def test_equal_json_has_equal_forms(value: object) -> None:
    texts = [json.dumps(value), json.dumps(value, indent=2), json.dumps(value, sort_keys=True, ensure_ascii=False)]
    texts += [f"```json\n{texts[1]}\n```", f"Here:\n\n```\n{texts[0]}\n```\nThat is all."]
    forms = {final_answer(text) for text in texts}
    assert len(forms) == 1
    assert json.loads(str(forms.pop())) == value


@pytest.mark.parametrize(
    "piece",
    [
        *("1,", "(", "{", "```\n", "\\boxed{", "answer is ", "**a", "not ", "<answer>", "1/", " ", "I'm sorry "),
        *("1 1/1 ", "[1,", "if 1:\n ", "\\frac{1}", "<think>", "####\n"),
    ],
)
def test_no_response_takes_long(piece: str) -> None:
    began = time.process_time()
    for length in (390, MAX_READ_CHARACTERS):
        text = piece * (length // len(piece))
        for response in (text, f"The answer is {text}", f"```python\n{text}", f"{text}\n\nSo {text[:300]}"):
            final_answer(response)
    assert time.process_time() - began < 5.0
