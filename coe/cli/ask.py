"""`coe route` shows decisions without asking anyone; `coe chat` talks to the running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import Config, Json, settings_for, writable
from coe.core import Decision, Prediction
from coe.errors import CoEError, DataError, ExpertUnavailable
from coe.learning.evaluation.tables import numbered_rows
from coe.settings import Settings
from coe.terminal import say, say_json, write


def readable(text: str | None) -> str | None:
    """What a terminal gave. Raises BadParameter where that was not UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("what was typed is not UTF-8") from None
    return text


Text = Annotated[str | None, typer.Argument(callback=readable, help="What a user would type.")]
Input = Annotated[Path | None, typer.Option("--input", help="JSONL or parquet with prompt, or messages.")]
Output = Annotated[
    Path | None, typer.Option("--output", callback=writable, help="Where the lines go, each with its `decision` added.")
]
Model = Annotated[str, typer.Option("--model", help="auto, or an expert to pin.")]


def route(
    text: Text = None, source: Input = None, output: Output = None, config: Config = None, json: Json = False
) -> None:
    """Show which expert would get a request, and why."""
    if (text is None) == (source is None):
        raise typer.BadParameter("give either a TEXT or --input FILE")
    look = _router(config)
    if text is not None:
        decision, posterior = look({"messages": [{"role": "user", "content": text}]})
        if json:
            say_json(_plain(decision, posterior))
        else:
            _explain(decision, posterior)
        return
    assert source is not None
    lines = _route_file(source, look)
    if output is None:
        write("".join(lines))
    else:
        output.write_text("".join(lines), encoding="utf-8")


Look = Callable[[dict[str, Any]], tuple[Decision, dict[str, float]]]


def _router(config: Path | None) -> Look:
    from coe.routing.composition import decide
    from coe.routing.conversation import routing_text
    from coe.routing.cost_weight import relative_use
    from coe.runtime.active_state import load_active_state
    from gateway.dialects.chat import parse

    in_use = load_active_state(settings_for(config))
    registry, router = in_use.registry, in_use.router
    charge = registry.policy.cost_weight * relative_use(registry)

    def look(fields: dict[str, Any]) -> tuple[Decision, dict[str, float]]:
        chat = parse(orjson.dumps({"model": "auto", **fields}))
        prediction: Prediction = router.predict([routing_text(chat)])[0]
        decision = decide(
            chat,
            prediction,
            registry=registry,
            assignment=in_use.assignment,
            confidence_threshold=in_use.confidence_threshold,
            charge=charge,
        )
        return decision, dict(zip(router.categories, prediction.probabilities.tolist(), strict=True))

    return look


def _route_file(path: Path, look: Look) -> list[str]:
    """Its rows as they are, with the decision under one key: a row may have a category and an expert of its own."""
    lines = []
    for number, row in numbered_rows(path):
        try:
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            decision, posterior = look({"messages": messages})
            lines.append(orjson.dumps({**row, "decision": _plain(decision, posterior)}).decode() + "\n")
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: expected JSON with prompt or messages ({error!r})") from None
        except CoEError as error:
            raise DataError(f"{path}:{number}: {error}") from None
    return lines


def _plain(decision: Decision, posterior: dict[str, float]) -> dict[str, Any]:
    return {
        "expert": decision.expert,
        "category": decision.category,
        "confidence": round(decision.confidence, 4),
        "reason": decision.reason,
        "candidates": decision.candidates,
        "probabilities": {name: round(p, 4) for name, p in posterior.items()},
    }


def _explain(decision: Decision, posterior: dict[str, float]) -> None:
    say(f"expert      {decision.expert}  ({decision.reason}; then {', '.join(decision.candidates[1:]) or 'nobody'})")
    for name, probability in sorted(posterior.items(), key=lambda item: -item[1])[:3]:
        say(f"{probability:10.1%}  {name}")


def chat(text: Text = None, model: Model = "auto", config: Config = None) -> None:
    """Chat with the running gateway; without TEXT, turn by turn until an empty line."""
    settings = settings_for(config)
    address = f"http://{settings.host}:{settings.port}/v1/chat/completions"
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = text or input_line()
        except (EOFError, KeyboardInterrupt):
            return
        if not said.strip():
            return
        messages.append({"role": "user", "content": said})
        answer = asyncio.run(_ask(address, model, messages, _headers(settings)))
        messages.append({"role": "assistant", "content": answer})
        if text is not None:
            return


def input_line() -> str:
    """One line from the terminal."""
    return input("> ")


def _headers(settings: Settings) -> dict[str, str]:
    key = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    return {"x-coe-purpose": "chat", **key}


async def _ask(address: str, model: str, messages: list[dict[str, str]], sent: dict[str, str]) -> str:
    import aiohttp

    body = {"model": model, "messages": messages, "stream": True}
    try:
        async with aiohttp.ClientSession() as session, session.post(address, json=body, headers=sent) as response:
            headers = response.headers
            if response.status != 200:
                raise ExpertUnavailable(_failure((await response.json())["error"]["message"], headers), expert=model)
            say(_banner(headers))
            return await _print_stream(response.content)
    except aiohttp.ClientConnectionError as error:
        raise ExpertUnavailable(f"nothing answers at {address}; is `coe up` running?", expert=model) from error


def _banner(headers: Mapping[str, str]) -> str:
    """One line: who answers, the category, and in place of whom and why."""
    answered = f"{headers['x-coe-expert']}: {headers['x-coe-category']} {headers['x-coe-confidence']}"
    if first := headers.get("x-coe-fallback-from"):
        answered += f"; in place of {first}, which did not answer: {headers.get('x-coe-cause', 'error')}"
    return f"[{answered}]"


def _failure(message: str, headers: Mapping[str, str]) -> str:
    cause = headers.get("x-coe-cause")
    return f"{message} (cause: {cause})" if cause else message


async def _print_stream(lines: Any) -> str:
    said = []
    async for line in lines:
        if not line.startswith(b"data: {"):
            continue
        event = orjson.loads(line[6:])
        if "error" in event:
            raise ExpertUnavailable(event["error"]["message"], expert="")
        for choice in event.get("choices", ()):
            chunk = choice.get("delta", {}).get("content") or ""
            said.append(chunk)
            write(chunk)
    say("")
    return "".join(said)
