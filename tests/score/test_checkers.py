"""Each checker, on answers as models write them."""

import pytest

from coe.measuring.checkers import choice, contains, exact, numeric
from coe.recipes.final_answers import chosen, last_number, unclear


@pytest.mark.parametrize("answer", [" paris.\n", "**Paris**", '"PARIS"', "- Paris", "Ｐａｒｉｓ"])
def test_exact_ignores_case_space_and_punctuation_at_the_ends(answer: str) -> None:
    assert exact(answer, "Paris") == 1.0


@pytest.mark.parametrize(("answer", "reference"), [("Paris, France", "Paris"), ("", "Paris"), ("3", "-3"), ("C", "C#")])
def test_exact_does_not_ignore_other_words_or_signs(answer: str, reference: str) -> None:
    assert exact(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        *(("I think it is **Paris**, of course", "paris", 1.0), ("concatenate", "cat", 0.0), ("the cats", "cat", 0.0)),
        *(("答案是东京。", "东京", 1.0), ("un café noir", "CAFÉ", 1.0), ("new\n  york", "New York", 1.0)),
    ],
)
def test_contains_looks_for_whole_words(answer: str, reference: str, score: float) -> None:
    assert contains(answer, reference) == score


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b.", "(B)", "**B. Paris**", "The correct answer is **B**", "**Answer**: B because", "Answer: option B"),
        *("$\\boxed{\\text{B}}$", "The answer is most likely (B)", "So it must be B.", "Let me think.\nB. Paris"),
        *("B is correct, (C) is not", "A. red\nB. blue\nC. green\n\nThe answer is B. blue"),
        *("First I thought the answer is (A). No: the answer is (B), since (C) is wrong", "(A) is wrong; I choose (B)"),
        *("The answer is not (A). The answer is (B).", "A is wrong, the answer is B because A fails", "正确答案是 (B)"),
        *(
            "答案：Ｂ",
            "【答案】B。A是铁",
            "我不选A，故选：B，不能选C",
            "答えはAではなくBです",
            "답은 A가 아니라 B입니다.",
        ),
        *(
            *("La réponse est B, car A est faux.", "La respuesta es la opción B, porque A no vale."),
            "La respuesta es la opción B, porque A no vale.",
            "A resposta é B, não A.",
        ),
        *("Antwort A ist falsch, Antwort B ist richtig.", "Правильный ответ — B, а не A"),
    ],
)
def test_choice_finds_the_letter_that_is_settled_on_in_any_language(answer: str) -> None:
    assert choice(answer, "B") == 1.0
    assert choice(answer, "A") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "The answer is not A",
            "It isn’t **option A**",
            "**Not A**",
            "It cannot be A.",
            "neither B nor A",
            "Answer: not A",
        ),
        *("Es ist nicht A", "Ce n'est pas la A", "No es la opción A", "Это не A", "答案不是A", "不应该选择A", "别选A"),
    ],
)
def test_choice_ignores_a_negated_letter(answer: str) -> None:
    assert chosen(answer) is None
    assert chosen(f"(B) is it. {answer}") == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("The one that is not: A", "Is it C? Certainly not\nA. Paris", "The answer is not B but A", "I think not. A"),
        *("不是B，是A", "特别是选项A", "不能不选A", "是不是A", "**Neither (A)**", "How often does it rain? Never (A)."),
    ],
)
def test_choice_accepts_a_letter_beside_another_negation(answer: str) -> None:
    assert chosen(answer) == "A"


@pytest.mark.parametrize(
    "answer", ["", "A good day", "The answer is a bird", "K", "ABBA", "Die Antwort ist Dänemark", "答案是DNA"]
)
def test_choice_does_not_mistake_an_ordinary_word_for_a_letter(answer: str) -> None:
    assert chosen(answer) is None
    assert choice(answer, "A") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("First 3, then 4: 12 apples.", 12), ("It costs $1,234.50.", 1234.5), ("about 1{,}000 km/h", 1000)),
        *(("-$5", -5), ("x = −7", -7), ("- 5 apples", 5), ("in 1990-2000", 2000), ("3/4 of it", 0.75), (".5", 0.5)),
        *(("$\\frac{3}{4}$", 0.75), ("1.5e-3", 0.0015), ("1.5 × 10^-3 m", 0.0015), ("10⁵", 100000), ("2^10", 1024)),
        *(("5 m^2", 5), ("5 cm²", 5), ("\\boxed{17} or was it 18?", 17), ("\\boxed{\\frac{1}{8}}", 0.125)),
        *(("#### 72", 72), ("12 of H2O", 12), ("8 and 1/0", 8), ("9 and 1e999", 9), ("答案是３９１个苹果", 391)),
        *(
            ("有12，345", 345),
            ("الجواب ١٬٢٣٤٫٥", 1234.5),
            ("Das Ergebnis ist 2,5.", 2.5),
            ("rund 1.234,5 oder", 1234.5),
        ),
        *(("environ 1\u202f234,5 €", 1234.5), ("genau 1.234.567", 1234567), ("1,234", 1234), ("1.234", 1.234)),
        *(("1,2,3", 3), ("at (2,5)", 5), ("1½", 1.5), ("it is…5", 5)),
    ],
)
def test_the_last_number_is_read_as_it_is_written(text: str, value: float) -> None:
    assert last_number(text) == (pytest.approx(value),)


@pytest.mark.parametrize("text", ["", "none", "x_1", "\\boxed{x^{2}}"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert last_number(text) == ()
    assert numeric(text, "1") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        *(("3.14159", "3.1416", 1.0), ("3.14", "3.1416", 0.0), ("1999", "2000", 0.0), ("50%", "0.5", 1.0)),
        *(("50%", "50", 1.0), ("0.5", "50%", 1.0), ("0.333333", "1/3", 1.0), ("0", "0", 1.0), ("0.1", "0", 0.0)),
        *(("Das Ergebnis ist 2,5.", "5", 0.0), ("答案是50％。", "0.5", 1.0)),
    ],
)
def test_numeric_allows_a_small_relative_error_and_none_between_whole_numbers(
    answer: str, reference: str, score: float
) -> None:
    assert numeric(answer, reference) == score


@pytest.mark.parametrize("reference", ["391", "1,234.5", "1/2", "50 \\%", "5 m^2", "x_1 = 5", "8 + 9 = 17 #### 17"])
def test_a_reference_of_one_number_is_clear(reference: str) -> None:
    assert unclear(reference) is None


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        *(("none", "must hold a number"), ("3,5", "write 3.5"), ("1.234,5 kg", "write 1234.5")),
        *(("2, 3", "must be one number"), ("1 234", "must be one number"), ("3:45", "must be one number")),
    ],
)
def test_a_reference_that_would_be_read_as_another_number_is_unclear(reference: str, remedy: str) -> None:
    assert remedy in (unclear(reference) or "")


@pytest.mark.parametrize(
    "chunk", ["(", "\n", "*", "_,", "answer: ", "\\boxed{", "**a. ", "{}", "答案：", "réponse est la ", "选", ".,"]
)
def test_an_answer_built_to_slow_the_checkers_down_is_checked_in_time(chunk: str) -> None:
    """Patterns that backtrack take minutes over these."""
    text = chunk * (400_000 // len(chunk)) + "x"
    assert chosen(text) is None
    assert last_number(text) == ()
    assert contains(text, "y") == 0.0
