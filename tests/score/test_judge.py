"""The judge grades twice, and sees a reference where there is one."""

import pytest

from coe.errors import ExpertError, ExpertInvalidResponse, ExpertUnavailable
from coe.measuring.answers import RetryLimits
from coe.measuring.judge import MAX_ATTEMPTS, Judge, JudgeScore
from tests.score.answering import AnswerFunction, AnsweringExpert

pytestmark = pytest.mark.anyio

QUICK = RetryLimits(attempts=2, pause_seconds=0)


async def judged(answer_to: AnswerFunction, *, reference: str | None = None) -> JudgeScore:
    judge = Judge(AnsweringExpert("judge", answer_to), limits=QUICK, concurrency=2)
    return await judge.score("why {so}?", "OURS", reference=reference)


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

    assert await judged(answer_to) == JudgeScore(pytest.approx(score), consistent)
    assert await judged(answer_to, reference="THEIRS") == JudgeScore(pytest.approx(score), consistent)


async def test_the_last_grade_counts_and_the_reference_is_shown_before_the_answer() -> None:
    def answer_to(text: str) -> str:
        assert text.index("<reference>\nTHEIRS\n</reference>") < text.index("<answer>\nOURS\n</answer>")
        return "I could say [[2]], but no: [[ 10 ]]"

    assert await judged(answer_to, reference="THEIRS") == JudgeScore(1.0, True)


async def test_a_judge_that_gives_no_grade_is_retried_and_then_reported() -> None:
    expert = AnsweringExpert("judge", lambda _: "both are nice")
    with pytest.raises(ExpertInvalidResponse, match="'judge' gave no grade in 3 answers"):
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
