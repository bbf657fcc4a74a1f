"""Answers of the embedded expert with and without passages, cached in a file so that an interrupted run continues."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.plain_questions import plain_questions
from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.measuring.checkers import contains
from coe.registry import ExpertSpec
from coe.retrieval.insertion import PassageBlock, format_passages
from coe.retrieval.passages import Passage, Retriever

MODEL = "SmolLM2-135M-Instruct"
TOKENS, BUDGET, PASSAGES = 12, 320, 2
"""Tokens of an answer, tokens of the passages, number of passages."""


@dataclass(frozen=True, slots=True)
class Question:
    """A correct answer contains one of `answers`; `kind` is plain or the source of the question."""

    kind: str
    text: str
    answers: tuple[str, ...]
    train: bool


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One question answered without and with passages: scores 0 or 1, tokens and cosines of the passages."""

    question: Question
    without: float
    with_: float
    tokens: int
    cosines: tuple[float, ...]
    seconds: float


def questions_of(rows: Sequence[dict[str, Any]], *, seed: int = 0) -> list[Question]:
    """Return 400 questions for evaluation, half of which need documents, and 120 for fitting."""
    random = Random(seed)
    picked = []
    for source, count, hint in (
        ("xquad_en", 100, "Answer in a few words."),
        ("pubmedqa", 100, "Answer yes or no."),
    ):
        found = random.sample(
            [row for row in rows if row["source"] == source and json.loads(row["answers"])], count + 30
        )
        picked += [
            Question(source, f"{row['question']} {hint}", tuple(json.loads(row["answers"])), index >= count)
            for index, row in enumerate(found)
        ]
    plain = plain_questions(260, seed=seed)
    random.shuffle(plain)
    return picked + [Question("plain", text, (answer,), index >= 200) for index, (text, answer) in enumerate(plain)]


async def answered(
    questions: Sequence[Question], retriever: Retriever, encoder: Any, *, folder: Path, ask: bool
) -> list[AnsweredQuestion]:
    """Answer the questions that FOLDER/answers.jsonl lacks, or with `ask` False return those it has.

    The order is random, questions for fitting first, so that a prefix is a sample.
    """
    questions = sorted(questions, key=lambda q: (not q.train, hashlib.sha256(q.text.encode()).hexdigest()))
    cache = _AnswerCache(folder / "answers.jsonl")
    if not ask:
        return [_answered(question, cache) for question in questions if cache.complete(question)]
    specs, endpoints = local_servers(
        [ExpertSpec(name="small", model=MODEL, runtime="transformers")],
        cache=folder / "models",
        logs=folder / "logs",
        python=Path(sys.executable),
        report=print,
    )
    found = []
    missing = [q for q in questions if not cache.complete(q)]
    if not missing:
        return [_answered(q, cache) for q in questions]
    async with Fleet(specs, report=print):
        import aiohttp

        endpoint = endpoints["small"]
        async with aiohttp.ClientSession() as session:
            for done, question in enumerate(questions):
                if not cache.complete(question):
                    block, cosines, seconds = await _block(question, retriever, encoder)
                    texts = (question.text, (block.text if block else "") + question.text)
                    answers = [await _answer(session, endpoint, text) for text in texts]
                    cache.add(question, texts, answers, block, cosines, seconds)
                    if done % 20 == 0:
                        print(f"{done}/{len(questions)}", flush=True)
                found.append(_answered(question, cache))
    return found


class _AnswerCache:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            row = json.loads(line)
            self.rows.setdefault(row["key"], []).append(row)

    def complete(self, question: Question) -> bool:
        return len(self.rows.get(_key(question), ())) >= 2

    def add(
        self,
        question: Question,
        texts: Sequence[str],
        answers: Sequence[str],
        block: PassageBlock | None,
        cosines: Sequence[float],
        seconds: float,
    ) -> None:
        """Add both answers, without and with passages, in one write; a killed run may leave half of it."""
        key, tokens = _key(question), block.tokens if block else 0
        found = {"cosines": list(cosines), "seconds": seconds, "tokens": tokens}
        rows = [{"key": key, "text": t, "answer": a, **found} for t, a in zip(texts, answers, strict=True)]
        self.rows.setdefault(key, []).extend(rows)
        with self._path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def _key(question: Question) -> str:
    parts = json.dumps([asdict(question), MODEL, TOKENS, BUDGET, PASSAGES])
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def _answered(question: Question, cache: _AnswerCache) -> AnsweredQuestion:
    without, with_ = cache.rows[_key(question)][-2:]
    right = [max(contains(row["answer"], answer) for answer in question.answers) for row in (without, with_)]
    return AnsweredQuestion(question, right[0], right[1], with_["tokens"], tuple(with_["cosines"]), with_["seconds"])


async def _block(
    question: Question, retriever: Retriever, encoder: Any
) -> tuple[PassageBlock | None, list[float], float]:
    began = time.perf_counter()
    vector = encoder.encode([question.text])[0]
    passages: Sequence[Passage] = await retriever.search(question.text, vector, limit=PASSAGES)
    seconds = time.perf_counter() - began
    return format_passages(passages, budget=BUDGET), [round(p.score, 4) for p in passages], seconds


async def _answer(session: Any, endpoint: Any, text: str) -> str:
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    for _ in range(3):
        async with session.post(f"{endpoint.base_url}/chat/completions", json=body) as response:
            if response.status == 200:
                return str((await response.json())["choices"][0]["message"]["content"] or "")
        await asyncio.sleep(1)
    raise SystemExit(f"the expert answered {response.status}")
