"""Each checker, on answers as models write them."""

import pytest

from coe.measuring.checkers import choice, contains, exact, numeric
from coe.recipes.final_answers.choices import chosen
from coe.recipes.final_answers.numbers import last_number, unclear


@pytest.mark.parametrize("answer", ["Paris", " paris.\n", "**Paris**", '"PARIS"', "- Paris", "`Paris`!", "Ｐａｒｉｓ"])
def test_exact_ignores_case_space_and_punctuation_at_the_ends(answer: str) -> None:
    assert exact(answer, "Paris") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("Paris, France", "Paris"), ("It is Paris", "Paris"), ("", "Paris"), ("3", "-3"), ("5", "5%"), ("C", "C#")],
)
def test_exact_does_not_ignore_other_words_or_signs(answer: str, reference: str) -> None:
    assert exact(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("I think it is **Paris**, of course", "paris", 1.0),
        ("concatenate", "cat", 0.0),
        ("the cats", "cat", 0.0),
        ("答案是东京。", "东京", 1.0),
        ("un café noir", "CAFÉ", 1.0),
        ("new\n  york", "New York", 1.0),
        ("a.b", "a*b", 0.0),
    ],
)
def test_contains_looks_for_whole_words(answer: str, reference: str, score: float) -> None:
    assert contains(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("**B. Paris**", "B"),
        ("The answer is (B).", "B"),
        ("The correct answer is **B**", "B"),
        ("**Answer:** b", "B"),
        ("**Answer**: B because", "B"),
        ("Answer: option B", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("The answer is most likely (B)", "B"),
        ("So it must be B.", "B"),
        ("Let me think.\nB. Paris", "B"),
        ("B is correct, (C) is not", "B"),
        ("A. red\nB. blue\nC. green\n\nThe answer is B. blue", "B"),
        ("First I thought the answer is (A). No: the answer is (B), since (C) is wrong", "B"),
        ("(A) is wrong, so is (C); I choose (B)", "B"),
        ("The answer is not (A). The answer is (B).", "B"),
        ("J", "J"),
        ("I", "I"),
        ("The answer is (I)", "I"),
        ("A is wrong, the answer is B because A fails", "B"),
    ],
)
def test_choice_finds_the_letter_that_is_settled_on(answer: str, letter: str) -> None:
    assert chosen(answer) == letter
    assert choice(answer, letter) == 1.0
    assert choice(answer, "K" if letter == "A" else "A") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "Ｂ",
        "正确答案是 (B)",
        "答案是B。",
        "答案：Ｂ",
        "【答案】B。A是铁",
        "答案应为选项B，因为A错",
        "选B",
        "我不选A，故选：B，不能选C",
        "A正确，C也正确，选择B。",
        "B、氩气",
        "B.氩，A是铁",
        "答えはBです。",
        "答えはAではなくBです",
        "正解：B。Aは違います",
        "정답은 B입니다.",
        "답은 A가 아니라 B입니다.",
        "La réponse est B, car A est faux.",
        "La réponse correcte est donc la (B), pas A.",
        "La respuesta es la opción B, porque A no vale.",
        "A resposta é B, não A.",
        "Die richtige Antwort lautet B, denn A ist falsch.",
        "Antwort A ist falsch, Antwort B ist richtig.",
        "Ответ: B. потому что A неверно",
        "Правильный ответ — B, а не A",
    ],
)
def test_choice_reads_other_languages(answer: str) -> None:
    assert chosen(answer) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("The answer is not A", "The answer isn't (A).", "It isn’t **option A**", "It is not option A.", "**Not A**"),
        *("It cannot be A.", "The answer is **not** A", "It can't be $A$", "neither B nor A", "I would not choose (A)"),
        *("Answer: not A", "it's never A", "Es ist nicht A", "Ce n'est pas la A", "No es la opción A", "Não é A"),
        *("It's neither (A) nor (C).", "Non è A", "Это не A", "答案不是A", "不能选A", "不应该选择A", "别选A"),
    ],
)
def test_choice_ignores_a_negated_letter(answer: str) -> None:
    assert chosen(answer) is None
    assert chosen(f"(B) is it. {answer}") == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("The one that is not: A", "Is it C? Certainly not\nA. Paris", "The answer is not B but A", "not only (A)"),
        *("The one that is not a mammal is (A)", "not (B), so (A)", "I think not. A", "不是B，是A", "别的不对，选A"),
        *("特别是选项A", "两项分别是A", "只好不得不选A", "不能不选A", "是不是A", "无不是A", "个别选A", "何不选A"),
        *("The hypothesis is neither (A).", "**Neither (A)**", "How often does it rain there? Never (A)."),
    ],
)
def test_choice_accepts_a_letter_beside_another_negation(answer: str) -> None:
    assert chosen(answer) == "A"


@pytest.mark.parametrize(
    "answer",
    [
        *("", "I think so", "A good day", "The answer is a bird", "Paris", "K", "ABBA", "(K)"),
        *("Die Antwort ist Dänemark", "答案是DNA", "La respuesta a esta pregunta", "选ABC都可以吗"),
    ],
)
def test_choice_does_not_mistake_an_ordinary_word_for_a_letter(answer: str) -> None:
    assert chosen(answer) is None
    assert choice(answer, "A") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("First 3, then 4: 12 apples.", 12),
        ("It costs $1,234.50.", 1234.5),
        ("about 1{,}000 km/h", 1000),
        ("-$5", -5),
        ("x = −7", -7),
        ("- 5 apples", 5),
        ("in 1990-2000", 2000),
        ("3/4 of it", 0.75),
        ("$\\frac{3}{4}$", 0.75),
        ("-\\dfrac{1}{2}", -0.5),
        ("1.5e-3", 0.0015),
        ("1.5 × 10^-3 m", 0.0015),
        ("1.5 \\times 10^{-3}", 0.0015),
        ("10⁵", 100000),
        ("2^10", 1024),
        ("5 m^2", 5),
        ("5 cm²", 5),
        ("\\boxed{17} or was it 18?", 17),
        ("\\boxed{\\frac{1}{8}}", 0.125),
        (".5", 0.5),
        ("#### 72", 72),
        ("12 of H2O", 12),
        ("8 and 1/0", 8),
        ("9 and 1e999", 9),
        ("答案是391。", 391),
        ("答案是３９１个苹果", 391),
        ("有12，345", 345),
        ("答えは1.5e3円です", 1500),
        ("정답은 1,234입니다", 1234),
        ("٣٫٥", 3.5),
        ("الجواب ١٬٢٣٤٫٥", 1234.5),
        ("Das Ergebnis ist 2,5.", 2.5),
        ("etwa -0,125 kg", -0.125),
        ("environ 1\u202f234,5 €", 1234.5),
        ("rund 1.234,5 oder", 1234.5),
        ("genau 1.234.567", 1234567),
        ("3{,}5 \\cdot 10^{-3}", 0.0035),
        ("1,234", 1234),
        ("1.234", 1.234),
        ("1,2,3", 3),
        ("at (2,5)", 5),
        ("1½", 1.5),
        ("it is…5", 5),
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
        ("3.14159", "3.1416", 1.0),
        ("3.14", "3.1416", 0.0),
        ("1999", "2000", 0.0),
        ("1000001", "1000000", 0.0),
        ("50%", "0.5", 1.0),
        ("50%", "50", 1.0),
        ("0.5", "50%", 1.0),
        ("50 percent", "50 \\%", 1.0),
        ("0.333333", "1/3", 1.0),
        ("0", "0", 1.0),
        ("0.1", "0", 0.0),
        ("Das Ergebnis ist 3,5.", "3.5", 1.0),
        ("Das Ergebnis ist 2,5.", "5", 0.0),
        ("Das sind 50,5 %", "0.505", 1.0),
        ("答案是50％。", "0.5", 1.0),
    ],
)
def test_numeric_allows_a_small_relative_error_and_none_between_whole_numbers(
    answer: str, reference: str, score: float
) -> None:
    assert numeric(answer, reference) == score


def test_numeric_takes_the_tolerance_of_the_probe() -> None:
    assert numeric("101", "100", tolerance=0.02) == 1.0
    assert numeric("103", "100", tolerance=0.02) == 0.0


@pytest.mark.parametrize(
    "reference",
    ["391", "1,234.5", "-3", "1/2", "1e-07", "50 \\%", "5 m^2", "12 of H2O", "x_1 = 5", "٣٫٥", "8 + 9 = 17 #### 17"],
)
def test_a_reference_of_one_number_is_clear(reference: str) -> None:
    assert unclear(reference) is None


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        ("none", "must hold a number"),
        ("3,5", "write 3.5"),
        ("1.234,5 kg", "write 1234.5"),
        ("2, 3", "must be one number"),
        ("(2,5)", "must be one number"),
        ("1 234", "must be one number"),
        ("3:45", "must be one number"),
    ],
)
def test_a_reference_that_would_be_read_as_another_number_is_unclear(reference: str, remedy: str) -> None:
    assert remedy in (unclear(reference) or "")


@pytest.mark.parametrize(
    "chunk",
    [
        *("(", "\n", " ", "*", "_,", "answer: ", "answer ", "\\boxed{", "**a. ", "{}"),
        *("答案：", "réponse est la ", "选", ".,", "…"),
    ],
)
def test_an_answer_built_to_slow_the_checkers_down_is_checked_in_time(chunk: str) -> None:
    """Patterns that backtrack take minutes over these."""
    text = chunk * (400_000 // len(chunk)) + "x"
    assert chosen(text) is None
    assert last_number(text) == ()
    assert contains(text, "y") == 0.0
