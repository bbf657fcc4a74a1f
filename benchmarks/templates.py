"""Accuracy of routing with a question inside the prompt templates that applications send, against the question alone.

    python -m benchmarks.templates --router FOLDER [--data DIR] [--each N] [--template NAME]... [--json FILE]

- Templates (templates.yaml) frame the questions of templates_questions.jsonl and, with --data, a fixed sample of public
  prompts, N a category. Templates with a context are filled twice: with passages (templates_passages.jsonl) of the
  question's category ("same") and of another one ("other"). A template is within its limit if the share of right
  categories falls by no more than that, over both kinds of questions. `error` is the paired standard error.
- Agents (templates_agents.yaml) send tasks, which belong to `code`, and questions of other topics
  (templates_agent_requests.jsonl), half of them after an earlier task with tool calls.
- Robustness: the questions with typos, in one case, and in other words; and what the router makes of the raw text,
  which shows what reading a plain question costs.

Each request is parsed by its API's dialect and classified as the gateway does, with the encoder wherever the fast heads
are unsure; the affinity of conversations takes no part. The router must not have been trained on the questions: the
starter router is trained on neither part. A router trained on public data needs other public data.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

import routers
from benchmarks.category import plain_category, read, sample
from coe.core import GENERAL, Chat, Router
from coe.planning.assignment import Assignment
from coe.registry import AUTO
from coe.routing.classifier import Classifier
from coe.routing.decision import CapableArms
from gateway.dialects.chat import CHAT
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES

EACH, MAX_PUBLIC_CHARACTERS = 40, 2000
LIMITS = {"training": 0.05, "held-out": 0.08, "same": 0.03, "other": 0.10}
"""Largest loss by kind of template; one with a context has the context's limit."""
AGENT_GOALS = {"tasks": 0.93, "questions": 0.85}
DIALECTS = {dialect.api: dialect for dialect in (CHAT, MESSAGES, RESPONSES)}
Frame = Mapping[str, Any]
"""A template or an agent, as in the YAML files."""
ALONE: Frame = {"name": "alone", "turns": [{"user": "{{question}}"}]}
Classify = Callable[[Chat], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its category. `options` are lettered lines, empty without choices; `public` prompts hold theirs."""

    prompt: str
    category: str
    options: str = ""
    reworded: str = ""
    public: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--each", type=int, default=EACH, metavar="N")
    parser.add_argument("--template", action="append", metavar="NAME", help="these alone, with what they get wrong")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frames = load_yaml("templates.yaml")
    if unknown := set(options.template or ()) - {frame["name"] for frame in frames}:
        parser.error(f"no such template in templates.yaml: {', '.join(sorted(unknown))}")
    chosen = [frame for frame in frames if not options.template or frame["name"] in options.template]
    questions = own_questions() + (public_questions(options.data, options.each) if options.data else [])
    report = asyncio.run(examine(routers.load(options.router), chosen, questions, alone=bool(options.template)))
    print("\n".join(lines(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


async def examine(router: Router, frames: Sequence[Frame], questions: Sequence[Question], *, alone: bool) -> Any:
    """Report on templates and, unless these are wanted `alone`, on agents and robustness."""
    classify = served(router)
    texts = dict.fromkeys(one.prompt + options for one in questions for options in ("", one.options))
    plain = {text: await classify(plain_chat(text)) for text in texts}
    report = {"templates": await templates(classify, frames, questions, plain)}
    if not alone:
        report["agents"] = await agents(classify)
        report["robustness"] = await robustness(classify, router, questions, plain)
    return report


def served(router: Router) -> Classify:
    """The gateway's way from a chat to its most likely category, with an encoder pass for each unsure text.

    The classifier chooses the routed text. Its own encoder passes are off, since a busy machine skips some of them.
    """
    names = router.categories
    classifier = Classifier(
        router,
        assignment=Assignment.declared(names, names, {name: name for name in names}, general=GENERAL),
        capable=CapableArms(()),
        confidence_threshold=0.0,
        encoder_timeout=None,
        threads=ThreadPoolExecutor(1),
        retrieves=False,
    )
    predict = lru_cache(maxsize=None)(lambda text: router.predict([text])[0])

    async def classify(chat: Chat) -> str:
        routed, _ = await classifier.classify(chat)
        return names[predict(routed.text).best]

    return classify


# ---------------------------------------------------------------------------------------------- material


def load_yaml(name: str) -> list[Frame]:
    return YAML(typ="safe").load(Path(__file__).with_name(name))  # type: ignore[no-any-return]


def load_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()]


def own_questions() -> list[Question]:
    return [
        Question(
            row["prompt"],
            row["category"],
            "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", row.get("options", ()), strict=False)),
            row.get("reworded", ""),
        )
        for row in load_rows("templates_questions.jsonl")
    ]


def public_questions(folder: Path, each: int) -> list[Question]:
    """`each` public prompts of every category of the starter router, always the same."""
    rows = [
        {"prompt": row["prompt"], "category": category}
        for name in ("category/train.parquet", "quality/prompts.parquet")
        for row in read(folder / name)
        if len(row["prompt"]) <= MAX_PUBLIC_CHARACTERS
        and row["category"] not in ("mixed_mmlu", "out_of_scope")
        and (category := plain_category(row))
    ]
    return [Question(row["prompt"], row["category"], public=True) for row in sample(rows, each=each)]


def chat_of(frame: Frame, values: Mapping[str, str], *, earlier: bool = False) -> Chat:
    """The request of a template or agent, parsed by its API's dialect. Raises KeyError for a slot without a value."""
    api = frame.get("api", "chat")
    turns = [{"system": frame["system"]}] if "system" in frame else []
    turns += [*(frame.get("earlier", ()) if earlier else ()), *frame["turns"]]
    spelled = [turn if turn.keys() & {"role", "type"} else message_of(**turn) for turn in turns]
    body = {"model": AUTO, **frame.get("fields", {}), "input" if api == "responses" else "messages": spelled}
    text = re.sub(r"{{(\w+)}}", lambda slot: json.dumps(values[slot[1]])[1:-1], json.dumps(body))
    return DIALECTS[api].parse(text.encode())


def message_of(**turn: str) -> dict[str, str]:
    """The API's form of a turn that is written as `role: text`."""
    ((role, text),) = turn.items()
    return {"role": role, "content": text}


def plain_chat(text: str) -> Chat:
    return chat_of(ALONE, {"question": text})


# ---------------------------------------------------------------------------------------------- parts of the report


async def templates(
    classify: Classify, frames: Sequence[Frame], questions: Sequence[Question], plain: Mapping[str, str]
) -> list[Any]:
    """A row for every template, two for one with a context. `plain` are the categories of the questions alone."""
    passages: dict[str, list[str]] = {}
    for row in load_rows("templates_passages.jsonl"):
        passages.setdefault(row["category"], []).append(row["text"])
    rows = []
    for frame in frames:
        body = json.dumps(frame["turns"])
        asked = [one for one in questions if "{{options}}" not in body or one.options or one.public]
        alone = [plain[one.prompt + one.options * ("{{options}}" in body)] for one in asked]
        for context in ("same", "other") if "{{context}}" in body else ("",):
            found = [
                await classify(chat_of(frame, values_of(one, passages, other=context == "other", seed=frame["name"])))
                for one in asked
            ]
            kind = context or ("held-out" if frame.get("held_out") else "training")
            row = {"template": f"{frame['name']} {context}".rstrip(), "family": frame["family"]}
            row |= {"held_out": bool(frame.get("held_out"))}
            rows.append(row | compared(asked, alone, found, wanted=frame.get("category"), limit=LIMITS[kind]))
    return rows


def values_of(one: Question, passages: Mapping[str, Sequence[str]], *, other: bool, seed: str) -> dict[str, str]:
    """Values for the slots of a template; the `other` topic of passages is drawn by question and seed."""
    rest = sorted(set(passages) - {one.category})
    topic = Random(f"{seed} {one.prompt}").choice(rest) if other else one.category
    context, more = passages[topic]
    return {"question": one.prompt, "options": one.options, "context": context, "more_context": more}


def compared(
    asked: Sequence[Question], alone: Sequence[str], found: Sequence[str], *, wanted: str | None, limit: float
) -> dict[str, Any]:
    """Shares of right categories alone and in the template; the frame's own category is `wanted`, if it has one."""
    before = np.array([name == one.category for one, name in zip(asked, alone, strict=True)])
    after = np.array([name == (wanted or one.category) for one, name in zip(asked, found, strict=True)])
    public = np.array([one.public for one in asked])
    figures = {name: difference(before[part], after[part]) for name, part in (("own", ~public), ("public", public))}
    figures["all"] = difference(before, after)
    lost = [
        f"{one.category} -> {name}: {one.prompt[:100]}"
        for one, name, was, now in zip(asked, found, before, after, strict=True)
        if was and not now
    ]
    return {**figures, "limit": limit, "within": figures["all"]["difference"] >= -limit, "lost": lost}


def difference(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """Two shares, their difference and its paired standard error; no shares of no questions."""
    if not len(before):
        return {"questions": 0}
    steps = after.astype(float) - before
    figures = {"plain": before.mean(), "inside": after.mean(), "difference": steps.mean()}
    figures["error"] = steps.std() / len(steps) ** 0.5
    return {"questions": len(before)} | {name: round(float(figure), 4) for name, figure in figures.items()}


async def agents(classify: Classify) -> list[Any]:
    """For each agent, and without one, the shares of tasks and of other questions that get their category, and those
    that do not. Requests after an earlier task are "later"."""
    requests = load_rows("templates_agent_requests.jsonl")
    rows = []
    for shift, frame in enumerate([ALONE, *load_yaml("templates_agents.yaml")]):
        row: dict[str, Any] = {"agent": frame["name"]}
        wrong = []
        for kind, wants_code in (("tasks", True), ("questions", False)):
            right = []
            chosen = [one for one in requests if (one["category"] == "code") == wants_code]
            for number, one in enumerate(chosen):
                earlier = (number + shift) % 2 == 1
                found = await classify(chat_of(frame, {"question": one["prompt"]}, earlier=earlier))
                right.append((earlier, found == one["category"]))
                if found != one["category"]:
                    wrong.append(f"{one['category']} -> {found}{' (later)' if earlier else ''}: {one['prompt']}")
            for half, moments in (("", (False, True)), (", first", (False,)), (", later", (True,))):
                row[kind + half] = round(float(np.mean([hit for later, hit in right if later in moments])), 4)
        within = all(row[kind] >= goal for kind, goal in AGENT_GOALS.items())
        rows.append(row | {"within": within, "wrong": wrong})
    return rows


async def robustness(
    classify: Classify, router: Router, questions: Sequence[Question], plain: Mapping[str, str]
) -> list[Any]:
    """Our questions in other spellings and words, and what the router makes of the raw text of all, against `plain`."""
    raw = router.predict([one.prompt for one in questions])
    hits = [router.categories[guess.best] == one.category for one, guess in zip(questions, raw, strict=True)]
    rows = [{"variant": "raw text"} | difference(right_alone(questions, plain), np.array(hits))]
    variants: dict[str, Callable[[Question], str]] = {
        "typos": lambda one: with_typos(one.prompt),
        "lower case": lambda one: one.prompt.lower().rstrip(".?!"),
        "upper case": lambda one: one.prompt.upper(),
        "reworded": lambda one: one.reworded,
    }
    for name, variant in variants.items():
        asked = [one for one in questions if not one.public and variant(one)]
        found = np.array([await classify(plain_chat(variant(one))) == one.category for one in asked])
        rows.append({"variant": name} | difference(right_alone(asked, plain), found))
    return rows


def right_alone(questions: Sequence[Question], plain: Mapping[str, str]) -> NDArray[np.bool_]:
    return np.array([plain[one.prompt] == one.category for one in questions])


def with_typos(text: str) -> str:
    """Swap, drop or double a letter in about two of five words of five letters or more, always the same ones."""
    rng = Random(text)

    def mistype(word: re.Match[str]) -> str:
        letters = word[0]
        if rng.random() > 0.4:
            return letters
        place = rng.randrange(1, len(letters) - 1)
        first, second = letters[place], letters[place + 1]
        slip = rng.choice((second + first, second, first + first + second))
        return letters[:place] + slip + letters[place + 2 :]

    return re.sub("[A-Za-z]{5,}", mistype, text)


# ---------------------------------------------------------------------------------------------- tables


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as Markdown tables."""
    yield "| template | family | own, plain | own | public, plain | public | all, difference | within |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in report["templates"]:
        name = row["template"] + " (held out)" * row["held_out"]
        shares = [f"{row[part][way]:.3f}" if row[part]["questions"] else "" for part, way in _SHARES]
        change, error = row["all"]["difference"], row["all"]["error"]
        within = f"{'yes' if row['within'] else '**no**'} ({row['limit']:.2f})"
        yield f"| {name} | {row['family']} | {' | '.join(shares)} | {change:+.3f} ± {error:.3f} | {within} |"
    if "agents" not in report:
        yield from (f"{row['template']}: {one}" for row in report["templates"] for one in row["lost"])
        return
    yield from ("", f"| agent | {' | '.join(_AGENT_SHARES)} | within |", "|---" * (len(_AGENT_SHARES) + 2) + "|")
    for row in report["agents"]:
        shares = [f"{row[name]:.3f}" for name in _AGENT_SHARES]
        yield f"| {row['agent']} | {' | '.join(shares)} | {'yes' if row['within'] else '**no**'} |"
    yield from ("", "| variant | questions | plain | varied | difference |", "|---|---|---|---|---|")
    for row in report["robustness"]:
        figures = f"{row['plain']:.3f} | {row['inside']:.3f} | {row['difference']:+.3f} ± {row['error']:.3f}"
        yield f"| {row['variant']} | {row['questions']} | {figures} |"
    yield from ("", "| part | templates | within | mean difference | worst |", "|---|---|---|---|---|")
    for part, rows in parts(report["templates"]).items():
        changes = [row["all"]["difference"] for row in rows]
        within = sum(row["within"] for row in rows)
        yield f"| {part} | {len(rows)} | {within} | {np.mean(changes):+.3f} | {min(changes):+.3f} |"


_SHARES = (("own", "plain"), ("own", "inside"), ("public", "plain"), ("public", "inside"))
_AGENT_SHARES = [f"{kind}{half}" for kind in ("tasks", "questions") for half in ("", ", first", ", later")]


def parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by kind of limit."""
    by_part: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        context = next((word for word in ("same", "other") if row["template"].endswith(f" {word}")), "")
        name = f"context of the {context} topic" if context else "no context"
        by_part.setdefault(name + (", held out" if row["held_out"] else ", training"), []).append(row)
    return by_part


if __name__ == "__main__":
    main()
