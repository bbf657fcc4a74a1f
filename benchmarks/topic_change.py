"""Topic changes: does the expert of a conversation change when the topic does, and stay when it does not?

    python -m benchmarks.topic_change --split DIR
    coe train --data DIR/training.jsonl --out DIR/router
    python -m benchmarks.topic_change --router DIR/router/router/VERSION --held-out DIR/held_out.jsonl

The first command splits the starter prompts, so that conversations have prompts that the router was not trained on.
They are put together from those that the router classifies right alone:

- `change`: a prompt, an answer, and a prompt of another category
- `short`: the same, where the new prompt has fewer than 40 characters
- `follow_up`: a prompt, an answer, and a line of topic_change_follow_ups.txt, which has no topic
- `detail`: a prompt, an answer, and a line of topic_change_details.jsonl, which asks about that kind of topic

Each category has an expert of its own, and the encoder is always on. A third of the newest turns, by digest, is the
test part; the rule was chosen on the others. The figure is the share of conversations that end with the right expert,
with its standard error. "with_context" routes the newest request with its context in every conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import routers
from coe.core import GENERAL, Chat, Message, RequestOptions, Router
from coe.planning.assignment import Assignment
from coe.registry import Registry
from coe.routing.composition import Composition
from coe.routing.decision import Previous
from coe.routing.request_text import read_request

FOLDER = Path(__file__).parent
FOLLOW_UPS, DETAILS = FOLDER / "topic_change_follow_ups.txt", FOLDER / "topic_change_details.jsonl"
CONVERSATIONS = 500
MAX_SHORT_CHARACTERS = 40
ANSWER = "Here is my answer."
Row = dict[str, str]
NO_OPTIONS = RequestOptions()


@dataclass(frozen=True, slots=True)
class Talk:
    """A first prompt and a newest turn. `earlier` is the category of the first, `wanted` that of the right expert."""

    kind: str
    first: str
    newest: str
    earlier: str
    wanted: str

    @property
    def is_test(self) -> bool:
        return hashlib.sha256(self.newest.encode()).digest()[0] % 3 == 0

    @property
    def chat(self) -> Chat:
        turns = Message("user", self.first), Message("assistant", ANSWER), Message("user", self.newest)
        return Chat("auto", turns, False, frozenset(), sum(len(turn.text) for turn in turns), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--router", type=Path)
    parser.add_argument("--held-out", type=Path)
    options = parser.parse_args()
    if options.split:
        write_split(options.split)
        return
    if not (options.router and options.held_out):
        parser.error("write --router and --held-out, or --split")
    rows = [json.loads(line) for line in options.held_out.read_text(encoding="utf-8").splitlines()]
    print(json.dumps(asyncio.run(topic_changes(routers.load(options.router), rows)), indent=1))


def write_split(folder: Path) -> None:
    """Write the starter prompts to two files: three in ten, by digest, are held out."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    for one in routers.starter_examples():
        is_held_out = hashlib.sha256(one.prompt.encode()).digest()[1] % 10 < 3
        parts[is_held_out].append(json.dumps({"prompt": one.prompt, "category": one.category}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held_out.jsonl").write_text("".join(parts[True]), encoding="utf-8")
    (folder / "training.jsonl").write_text("".join(parts[False]), encoding="utf-8")


async def topic_changes(router: Router, rows: Sequence[Row]) -> dict[str, Any]:
    """Shares by rule, part and kind of conversation."""
    talks = conversations(router, rows)
    report: dict[str, Any] = {"prompts": len(rows)}
    with ThreadPoolExecutor(1) as threads:
        composition = _composition(router, threads)
        for name, detects in (("with_context", False), ("now", True)):
            right = await ends_right(composition, talks, detects=detects)
            report[name] = {part: _shares(talks, right, part) for part in ("development", "test")}
    return report


def conversations(router: Router, rows: Sequence[Row]) -> list[Talk]:
    """Conversations of each kind, always the same ones for the same router and prompts."""
    rng = random.Random(0)
    predictions = router.predict([row["prompt"] for row in rows])
    named = zip(rows, predictions, strict=True)
    right = [row for row, found in named if router.categories[found.best] == row["category"] != GENERAL]
    by_category = {name: [row for row in right if row["category"] == name] for name in router.categories}
    short = [row for row in right if len(row["prompt"]) < MAX_SHORT_CHARACTERS]
    talks = []
    for kind, newest in (("change", right), ("short", short)):
        for _ in range(CONVERSATIONS):
            new = rng.choice(newest)
            first = rng.choice([row for row in right if row["category"] != new["category"]])
            talks.append(Talk(kind, first["prompt"], new["prompt"], first["category"], new["category"]))
    for line in FOLLOW_UPS.read_text(encoding="utf-8").splitlines():
        first = rng.choice(right)
        talks.append(Talk("follow_up", first["prompt"], line, first["category"], first["category"]))
    for row in map(json.loads, DETAILS.read_text(encoding="utf-8").splitlines()):
        for line in row["follow_ups"] if by_category[row["category"]] else ():
            first = rng.choice(by_category[row["category"]])
            talks.append(Talk("detail", first["prompt"], line, first["category"], first["category"]))
    return talks


async def ends_right(composition: Composition, talks: Sequence[Talk], *, detects: bool) -> list[bool]:
    """Return for each conversation if it ends with the right expert, by a complete prediction of the routed text.

    Without `detects`, the newest request is routed with its context, whatever its topic.
    """
    routed = [
        (await composition.classifier.classify(talk.chat))[0] if detects else read_request(talk.chat) for talk in talks
    ]
    predictions = composition.router.predict([one.text for one in routed])
    return [
        composition.decide(talk.chat, prediction, NO_OPTIONS, previous=Previous(talk.earlier, one.continues)).expert
        == talk.wanted
        for talk, one, prediction in zip(talks, routed, predictions, strict=True)
    ]


def _composition(router: Router, threads: ThreadPoolExecutor) -> Composition:
    names = router.categories
    server = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    registry = Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in names],
            "experts": [{"name": name, **server} for name in names],
            "assignment": {name: name for name in names},
        }
    )
    assignment = Assignment.declared(names, names, {name: name for name in names}, general=GENERAL)
    return Composition(registry, router=router, assignment=assignment, experts={}, threads=threads)


def _shares(talks: Sequence[Talk], right: Sequence[bool], part: str) -> dict[str, Any]:
    shares = {}
    for kind in ("change", "short", "follow_up", "detail"):
        chosen = [index for index, talk in enumerate(talks) if (talk.kind, talk.is_test) == (kind, part == "test")]
        hits = [right[index] for index in chosen]
        share = sum(hits) / len(hits)
        error = math.sqrt(share * (1 - share) / len(hits))
        turns = len({talks[index].newest for index in chosen})
        shares[kind] = {"conversations": len(hits), "turns": turns, "right": round(share, 3), "error": round(error, 3)}
    return shares


if __name__ == "__main__":
    main()
