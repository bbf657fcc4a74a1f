"""Each checker, on answers as models write them."""

import pytest

from coe.learning.checkers import choice, chosen, contains, exact, last_number, numeric


@pytest.mark.parametrize("answer", ["Paris", " paris.\n", "**Paris**", '"PARIS"', "- Paris", "`Paris`!", "Ｐａｒｉｓ"])
def test_exact_forgives_case_space_and_punctuation_at_the_ends(answer: str) -> None:
    assert exact(answer, "Paris") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("Paris, France", "Paris"), ("It is Paris", "Paris"), ("", "Paris"), ("3", "-3"), ("5", "5%"), ("C", "C#")],
)
def test_exact_does_not_forgive_other_words_or_signs(answer: str, reference: str) -> None:
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
        ("正确答案是 (B)", "B"),
    ],
)
def test_choice_finds_the_letter_that_is_settled_on(answer: str, letter: str) -> None:
    assert chosen(answer) == letter
    assert choice(answer, letter) == 1.0
    assert choice(answer, "K" if letter == "A" else "A") == 0.0


@pytest.mark.parametrize(
    "answer", ["", "I think so", "A good day", "The answer is a bird", "Paris", "K", "ABBA", "(K)"]
)
def test_choice_takes_no_ordinary_word_for_a_letter(answer: str) -> None:
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
    ],
)
def test_numeric_allows_a_small_relative_error_and_none_between_whole_numbers(
    answer: str, reference: str, score: float
) -> None:
    assert numeric(answer, reference) == score


def test_numeric_takes_the_tolerance_of_the_probe() -> None:
    assert numeric("101", "100", tolerance=0.02) == 1.0
    assert numeric("103", "100", tolerance=0.02) == 0.0


@pytest.mark.parametrize("piece", ["(", "\n", " ", "*", "_,", "answer: ", "answer ", "\\boxed{", "**a. ", "{}"])
def test_an_answer_made_to_be_slow_is_checked_all_the_same(piece: str) -> None:
    """Patterns that backtrack take minutes over these."""
    text = piece * (400_000 // len(piece)) + "x"
    assert chosen(text) is None
    assert last_number(text) == ()
    assert contains(text, "y") == 0.0
