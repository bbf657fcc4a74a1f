"""Templates: the same numbers for the same seed, others for others, and no code from a probe file."""

from typing import Any

import pytest

from coe.measuring.probes.probes import probe_of
from coe.measuring.probes.templates import drawn, evaluate

SUM = {
    "id": "sum",
    "category": "math",
    "checker": "numeric",
    "draw": {"a": [2, 90], "b": [0.5, 9.5, 0.25], "who": ["Ada", "Bo"]},
    "let": {"c": "a + b"},
    "where": "a > b",
    "prompt": "${who} adds ${a} and ${b:.2f}.",
    "reference": "${c}",
}


def test_a_drawn_probe_has_the_answer_to_the_numbers_of_its_seed() -> None:
    assert drawn(SUM, 7) == drawn(SUM, 7)
    assert drawn(SUM, 7)["id"] == "sum-7"
    assert len({drawn(SUM, seed)["prompt"] for seed in range(20)}) > 15
    for seed in range(50):
        probe = probe_of(SUM, ("math",), seed)
        name, _, a, _, b = probe.prompt.rstrip(".").split()
        assert name in ("Ada", "Bo")
        assert int(a) > float(b)
        assert float(probe.reference or "") == int(a) + float(b)
        assert "$" not in probe.prompt


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7 // 2 + 2**3 % 5", 6),
        ("sqrt(a) if a > 3 else 0", 2.0),
        ("['x', 'y'][a - 3]", "y"),
        ("1 < a <= 4 and not a == 5", True),
        ("round(10 / 3, 2)", 3.33),
    ],
)
def test_expressions_are_arithmetic(expression: str, value: object) -> None:
    assert evaluate(expression, {"a": 4}) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("__import__('os')", "a.real", "(lambda: 1)()", "[x for x in 'ab']", "9**9**9", "comb(10**6, 3)", "b", "1/0"),
        *("'a' * 10**9", "a if", "round(1.5, ndigits=1)", "f'{a}'", "open('x')", "1 is 1", "(9**64)**9", "[1] + [2]"),
        "(9**64)*(10**12)**64*(10**12)**64",
    ],
)
def test_an_expression_runs_no_code_and_stays_small(expression: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        evaluate(expression, {"a": 4})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"draw": []}, "`draw` must map names"),
        ({"draw": {"a": [5, 2]}}, "`draw.a` must be"),
        ({"draw": {"a": [1, 2, 0]}}, "`draw.a` must be"),
        ({"draw": {"a": [1, 1e308, 1e-300]}}, "`draw.a` has too many steps"),
        ({"draw": {"a": [1, float("nan")]}}, "`draw.a` has too many steps"),
        ({"let": ["x"]}, "`let` must map names to expressions"),
        (
            {"let": {"c": "a"} | {f"c{n}": f"c{n - 1 or ''} * c{n - 1 or ''}" for n in range(1, 15)}},
            "limited to 4,096 bits",
        ),
        ({"prompt": "${a:99999f}"}, "cannot evaluate 'a:99999f'"),
        ({"prompt": "${(10**12)**64:f}"}, "cannot write 1000"),
        ({"where": "a < 0"}, "`where` did not hold"),
        ({"prompt": "${nobody}"}, "'nobody' is not allowed"),
        ({"reference": "${who}"}, "must hold a number"),
    ],
)
def test_a_bad_template_is_named(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r".+") as raised:
        probe_of(SUM | changes, ("math",))
    assert why in str(raised.value)
