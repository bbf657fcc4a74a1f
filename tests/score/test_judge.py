"""The judge compares in both orders."""

import pytest

from coe.errors import ExpertError, ExpertInvalidResponse, ExpertUnavailable
from coe.learning.evaluation.answers import RetryLimits
from coe.learning.evaluation.judge import MAX_ATTEMPTS, Judge, JudgeScore
from tests.score.answering import AnswerFunction, AnsweringExpert

pytestmark = pytest.mark.anyio

QUICK = RetryLimits(attempts=2, pause_seconds=0)


async def judged(answer_to: AnswerFunction, *, reference: str | None = "THEIRS") -> JudgeScore:
    judge = Judge(AnsweringExpert("judge", answer_to), limits=QUICK, concurrency=2)
    return await judge.score("why {so}?", "OURS", reference=reference)


def ours_first(text: str) -> bool:
    return text.index("OURS") < text.index("THEIRS")


@pytest.mark.parametrize(
    ("first", "second", "score", "consistent"),
    [
        ("[[1]]", "[[2]]", 1.0, True),
        ("[[2]]", "[[1]]", 0.0, True),
        ("[[tie]]", "[[Tie]]", 0.5, True),
        ("[[1]]", "[[1]]", 0.5, False),
        ("[[2]]", "[[2]]", 0.5, False),
        ("[[1]]", "[[tie]]", 0.5, False),
        ("I could say [[2]], but no: [[ 1 ]]", "[[1]]? No. [[2]]", 1.0, True),
    ],
)
async def test_a_comparison_counts_when_both_orders_agree(
    first: str, second: str, score: float, consistent: bool
) -> None:
    judgement = await judged(lambda text: first if ours_first(text) else second)
    assert judgement == JudgeScore(score, consistent)


@pytest.mark.parametrize(
    ("down", "up", "score", "consistent"),
    [
        ("[[10]]", "[[10]]", 1.0, True),
        ("[[1]]", "[[1]]", 0.0, True),
        ("[[5]]", "[[6/10]]", 0.5, True),
        ("[[9]]", "[[7]]", 7 / 9, True),
        ("[[10]]", "[[3]]", 0.5, False),
    ],
)
async def test_a_grade_is_the_mean_of_two_unless_they_contradict_each_other(
    down: str, up: str, score: float, consistent: bool
) -> None:
    def answer_to(text: str) -> str:
        return down if text.index("10: correct") < text.index("1: wrong") else up

    assert await judged(answer_to, reference=None) == JudgeScore(pytest.approx(score), consistent)


async def test_a_judge_that_gives_no_verdict_is_retried_and_then_reported() -> None:
    expert = AnsweringExpert("judge", lambda _: "both are nice")
    with pytest.raises(ExpertInvalidResponse, match="'judge' gave no verdict in 3 answers"):
        await Judge(expert, limits=QUICK, concurrency=1).score("q", "a", reference="r")
    assert len(expert.questions) == MAX_ATTEMPTS


async def test_a_judge_that_is_down_is_reported() -> None:
    with pytest.raises(ExpertError, match="away"):
        await judged(lambda _: ExpertUnavailable("away", expert="judge"))


async def test_the_judge_sees_the_whole_question_and_bounded_texts() -> None:
    expert = AnsweringExpert("judge", lambda text: "[[5]]")
    await Judge(expert, limits=QUICK, concurrency=1).score("why {so}?", "x" * 10**6, reference=None)
    assert "why {so}?" in expert.questions[0]
    assert len(expert.questions[0]) < 25_000
