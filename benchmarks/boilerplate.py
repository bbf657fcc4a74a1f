"""Accuracy of routing with the boilerplate of agents and clients around a prompt, against the prompt alone.

    python -m benchmarks.boilerplate --router FOLDER [--data DIR/category] [--json FILE]

Each prompt of boilerplate_prompts.jsonl is wrapped by each of boilerplate_wrappers.py and classified in two ways: by
the text that is routed now, and by the last user messages as they stand ("before"). A third of the prompts, chosen by
their digest, is the test part; rules were written with the others in view. With --data, public prompts of one line are
a third part, "public", which neither the rules nor the router have seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import routers
from benchmarks.boilerplate_wrappers import CASES, SHORT_REQUESTS, WRAPPERS, Messages, opencode
from benchmarks.category import plain_category, sample
from coe.core import Chat, Message, Router
from coe.routing.request_text import (
    MAX_LAST_TURN_CHARACTERS,
    MAX_OLDER_TURN_CHARACTERS,
    MAX_SYSTEM_PROMPT_CHARACTERS,
    MIN_USER_CHARACTERS,
    routing_text,
    shorten,
)

PUBLIC_EACH, MAX_PUBLIC_CHARACTERS = 60, 160
PROMPTS = Path(__file__).with_name("boilerplate_prompts.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = boilerplate(routers.load(options.router), public_prompts(options.data) if options.data else [])
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")


def boilerplate(router: Router, public: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """Accuracies by part of the prompts and wrapper, and the single cases."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    parts = {
        "development": [row for row in rows if not is_test(row["prompt"])],
        "test": [row for row in rows if is_test(row["prompt"])],
    }
    if public:
        parts["public"] = list(public)
    report: dict[str, Any] = {name: _accuracies(router, part) for name, part in parts.items()}
    texts = [read(chat_of(messages)) for _, _, messages in CASES for read in (unfiltered_text, routing_text)]
    found = _categories(router, texts)
    for read in (unfiltered_text, routing_text):
        short = _categories(router, [read(chat_of(opencode(request))) for request in SHORT_REQUESTS])
        report[f"short_requests_to_code_{'before' if read is unfiltered_text else 'now'}"] = short.count("code")
    report["cases"] = {
        name: {"wanted": wanted, "before": found[2 * index], "now": found[2 * index + 1]}
        for index, (name, wanted, _) in enumerate(CASES)
    }
    return report


def public_prompts(folder: Path) -> list[dict[str, str]]:
    """Public prompts of one line, PUBLIC_EACH of every category."""
    rows = [
        {"category": category, "prompt": row["prompt"]}
        for row in pq.read_table(folder / "train.parquet", columns=["prompt", "category", "label"]).to_pylist()
        if len(row["prompt"]) <= MAX_PUBLIC_CHARACTERS and "\n" not in row["prompt"]
        if (category := plain_category(row))
    ]
    return sample(rows, each=PUBLIC_EACH)


def is_test(prompt: str) -> bool:
    """True for a third of the prompts."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 3 == 0


def chat_of(messages: Messages) -> Chat:
    turns = tuple(Message(message["role"], message["content"]) for message in messages)
    length = sum(len(turn.text) for turn in turns)
    return Chat("auto", turns, stream=False, needs=frozenset(), characters=length, fields={})


def unfiltered_text(chat: Chat) -> str:
    """The last user messages and, with little text, head and tail of the system prompt, as they stand."""
    turns = (message.text for message in reversed(chat.messages) if message.role == "user" and message.text)
    parts = [shorten(next(turns, ""), MAX_LAST_TURN_CHARACTERS)]
    parts += [shorten(turn, limit) for limit, turn in zip(MAX_OLDER_TURN_CHARACTERS, turns, strict=False)]
    if sum(map(len, parts)) < MIN_USER_CHARACTERS:
        system = [message for message in chat.messages[:1] if message.role != "user"]
        parts += [shorten(message.text, MAX_SYSTEM_PROMPT_CHARACTERS) for message in system]
    return "\n".join(part for part in parts if part)


def _accuracies(router: Router, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    plain = _accuracy(router, rows, lambda prompt: prompt)
    report: dict[str, Any] = {"prompts": len(rows), "plain": plain, "wrappers": {}}
    for name, wrap in WRAPPERS.items():
        report["wrappers"][name] = {
            "before": _accuracy(router, rows, lambda prompt, wrap=wrap: unfiltered_text(chat_of(wrap(prompt)))),
            "now": _accuracy(router, rows, lambda prompt, wrap=wrap: routing_text(chat_of(wrap(prompt)))),
        }
    for way in ("before", "now"):
        figures = [one[way] for one in report["wrappers"].values()]
        report[way] = round(sum(figures) / len(figures), 3)
    return report


def _accuracy(router: Router, rows: Sequence[dict[str, str]], text_of: Callable[[str], str]) -> float:
    found = _categories(router, [text_of(row["prompt"]) for row in rows])
    right = sum(category == row["category"] for category, row in zip(found, rows, strict=True))
    return round(right / len(rows), 3)


def _categories(router: Router, texts: Sequence[str]) -> list[str]:
    return [router.categories[prediction.best] for prediction in router.predict(texts)]


if __name__ == "__main__":
    main()
