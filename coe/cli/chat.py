"""`coe route` shows routing decisions without calling an expert; `coe chat` sends messages to the running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import Config, Json, print_result, settings_for, table, writable_file
from coe.core import GENERAL
from coe.errors import CoEError, DataError, ExpertUnavailable
from coe.measuring.tables import numbered_rows
from coe.terminal import print_line, print_part

Text = Annotated[str | None, typer.Argument(help="The user's message.")]
Input = Annotated[Path | None, typer.Option("--input", help="JSONL or parquet with prompt, or messages and tools.")]
Output = Annotated[
    Path | None, typer.Option("--output", callback=writable_file, help="File for the rows, each with its `decision`.")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Also show the text that is routed, and what it leaves out of the messages.")
]
Key = Annotated[str, typer.Option("--key", help="Name of an API key, whose rules for experts apply.")]
Client = Annotated[str, typer.Option("--client", help="Value of the header user-agent, for rules.")]
Model = Annotated[str, typer.Option("--model", help="auto, or the name of an expert.")]


def route(
    text: Text = None,
    source: Input = None,
    output: Output = None,
    config: Config = None,
    json: Json = False,
    explain: Explain = False,
    key: Key = "",
    client: Client = "",
) -> None:
    """Show which expert a request would go to, and why."""
    if (text is None) == (source is None):
        raise typer.BadParameter("give either a TEXT or --input FILE")
    route_request = _open_router(config, key, client, explain=explain)
    if text is not None:
        decision = route_request({"messages": [{"role": "user", "content": text}]})
        print_result(decision, _lines(decision), json=json)
        return
    assert source is not None
    lines = _route_file(source, route_request)
    if output is None:
        print_part("".join(lines))
    else:
        output.write_text("".join(lines), encoding="utf-8")


RouteRequest = Callable[[dict[str, Any]], dict[str, Any]]
"""Decides the fields of a request, and returns the decision as JSON has it."""


def _open_router(config: Path | None, key: str, client: str, *, explain: bool) -> RouteRequest:
    from coe.artifacts.active_state import load_active_state
    from coe.artifacts.api_keys import rule_of
    from coe.planning.assignment import apply_residual, nearest_measured
    from coe.planning.problem import relative_cost
    from coe.registry.permission import excluded_experts, only_local
    from coe.routing.classifier import read_topic
    from coe.routing.decision import decide
    from coe.routing.request_text import REASONS
    from coe.routing.rules import RequestFacts, Rules
    from gateway.access.allowance import input_range
    from gateway.dialects.chat import parse

    in_use = load_active_state(settings_for(config))
    registry, router = in_use.registry, in_use.router
    declared = next((one for one in registry.access.keys if one.name == key), None)
    if key and declared is None:
        known = ", ".join(one.name for one in registry.access.keys) or "none"
        raise typer.BadParameter(f"no such key in access.keys; known: {known}", param_hint="--key")
    key_rule = None if declared is None else rule_of(declared)
    tenant = "" if declared is None else declared.tenant or key
    rules = Rules(registry, router.categories)
    charge = registry.policy.cost_weight * relative_cost(registry, in_use.assignment.experts)
    general = router.categories.index(GENERAL)

    def route_request(fields: dict[str, Any]) -> dict[str, Any]:
        chat = parse(orjson.dumps({"model": "auto", **fields}))
        text, _ = read_topic(chat, router.predict_fast, general=general)
        matching = rules.matching(RequestFacts(chat, chat.model, input_range, client, key, tenant))
        rule = only_local(key_rule) if rules.only_local(matching) else key_rule
        (prediction,) = router.predict([text.text], encode=in_use.assignment.residual is not None)
        prediction = rules.apply(matching, apply_residual(in_use.assignment, prediction))
        decision = decide(
            chat,
            prediction,
            registry=registry,
            assignment=in_use.assignment,
            confidence_threshold=in_use.confidence_threshold,
            extra_price=charge,
            rule=rule,
            named=rules.arms.get(prediction.rule, ""),
        )
        probabilities = zip(router.categories, prediction.probabilities.tolist(), strict=True)
        answer = {
            "expert": decision.expert,
            "category": decision.category,
            "confidence": round(decision.confidence, 4),
            "reason": decision.reason,
            "rule": decision.rule,
            "candidates": decision.candidates,
            "probabilities": {name: round(probability, 4) for name, probability in probabilities},
        }
        if not explain:
            return answer
        return answer | {
            "text": text.text,
            "left_out": [asdict(part) | {"what": f"{part} ({REASONS[part.kind]})"} for part in text.left_out],
            "excluded": dict(excluded_experts(registry, rule)),
            "correction": asdict(prediction.correction) if prediction.correction else None,
            "measured": nearest_measured(in_use.assignment, prediction, decision.candidates),
        }

    return route_request


def _route_file(path: Path, route_request: RouteRequest) -> list[str]:
    """The rows of the file, each with its decision under one key: a row may have fields of the same names."""
    lines = []
    for number, row in numbered_rows(path):
        try:
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            more = {"tools": row["tools"]} if row.get("tools") else {}
            decision = route_request({"messages": messages, **more})
            lines.append(orjson.dumps({**row, "decision": decision}).decode() + "\n")
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: expected JSON with prompt or messages ({error!r})") from None
        except CoEError as error:
            raise DataError(f"{path}:{number}: {error}") from None
    return lines


_EXCLUDED = {"key": "not in the list of the key", "not_local": "does not run locally"}


def _lines(decision: Mapping[str, Any]) -> Iterator[str]:
    others = ", ".join(decision["candidates"][1:]) or "none"
    rows = [("expert", f"{decision['expert']}  ({decision['reason']}; then {others})")]
    if decision["rule"]:
        rows.append(("rule", decision["rule"]))
    probabilities = sorted(decision["probabilities"].items(), key=lambda item: -item[1])[:3]
    rows += [(f"{probability:10.1%}", name) for name, probability in probabilities]
    if "text" in decision:
        rows.append(("text", decision["text"]))
        rows += [("not routed", part["what"]) for part in decision["left_out"]]
        rows += [("excluded", f"{name} ({_EXCLUDED[why]})") for name, why in decision["excluded"].items()]
        if near := decision["correction"]:
            rows.append(
                ("corrected", f"{near['digest'][:12]}: {near['category']}, similarity {near['similarity']:.2f}")
            )
        for one in decision["measured"]:
            scores = ", ".join(f"{name} {score:.2f}" for name, score in one["scores"].items())
            near = f"similarity {one['similarity']:.2f}, weight {one['weight']:.1%}"
            rows.append(("measured", f"{one['prompt_id']} ({near}): {scores}"))
            rows.append(("", "rated request" if one["text"] is None else f"{one['category']}: {one['text']}"))
    yield table(("", ""), rows)


def chat(text: Text = None, model: Model = "auto", config: Config = None) -> None:
    """Chat with the running gateway; without TEXT, message by message until an empty line."""
    settings = settings_for(config)
    address = f"http://{settings.host}:{settings.port}/v1/chat/completions"
    headers = {"x-coe-purpose": "chat"}
    if settings.api_key:
        headers["authorization"] = f"Bearer {settings.api_key}"
    messages: list[dict[str, str]] = []
    while True:
        try:
            message = text or input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        if not message.strip():
            return
        messages.append({"role": "user", "content": message})
        answer = asyncio.run(_send(address, model, messages, headers))
        messages.append({"role": "assistant", "content": answer})
        if text is not None:
            return


async def _send(address: str, model: str, messages: list[dict[str, str]], headers: dict[str, str]) -> str:
    """Send the conversation, print the answer as it arrives, and return it. Raises ExpertUnavailable."""
    import aiohttp

    body = {"model": model, "messages": messages, "stream": True}
    try:
        async with aiohttp.ClientSession() as session, session.post(address, json=body, headers=headers) as response:
            if response.status != 200:
                cause = f" (cause: {cause})" if (cause := response.headers.get("x-coe-cause")) else ""
                raise ExpertUnavailable((await response.json())["error"]["message"] + cause, expert=model)
            got = response.headers
            banner = f"{got['x-coe-expert']}: {got['x-coe-category']} {got['x-coe-confidence']}"
            if first := got.get("x-coe-fallback-from"):
                banner += f"; in place of {first}, which did not answer: {got.get('x-coe-cause', 'error')}"
            print_line(f"[{banner}]")
            return await _print_stream(response.content)
    except aiohttp.ClientConnectionError as error:
        raise ExpertUnavailable(f"nothing answers at {address}; is `coe up` running?", expert=model) from error


async def _print_stream(lines: Any) -> str:
    chunks = []
    async for line in lines:
        if not line.startswith(b"data: {"):
            continue
        event = orjson.loads(line[6:])
        if "error" in event:
            raise ExpertUnavailable(event["error"]["message"], expert="")
        for choice in event.get("choices", ()):
            chunk = choice.get("delta", {}).get("content") or ""
            chunks.append(chunk)
            print_part(chunk)
    print_line("")
    return "".join(chunks)
