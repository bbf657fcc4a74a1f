"""A real HTTP server that answers by rule, in the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

REPLY = "The capital is Paris."
PERSON = '{"name":"Ada","age":36}'
CITIES = ("Paris", "Rome")
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
TOKENS = {"input_tokens": 7, "output_tokens": 5}


class ModelServer:
    """`seen` holds (path, parsed body) of every request, `headers` its headers; `dropped` is set when a client leaves
    a stream that was not at its end."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.dropped = asyncio.Event()
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/api/chat", self._ollama)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.seen.append((request.path, body))
        self.headers.append(dict(request.headers))
        return body

    # ------------------------------------------------------------------------------------------- chat completions

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if refusal := _refusal(body):
            return refusal
        messages = [_chat_message(body) for _ in range(body.get("n") or 1)]
        if not body.get("stream"):
            choices = [_choice(index, message, body) for index, message in enumerate(messages)]
            return web.json_response(_completion(body, object="chat.completion", choices=choices, usage=USAGE))
        chunks = [chunk for index, message in enumerate(messages) for chunk in _deltas(index, message)]
        events = [_completion(body, object="chat.completion.chunk", choices=[chunk]) for chunk in chunks]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append(_completion(body, object="chat.completion.chunk", choices=[], usage=USAGE))
        return await self._stream(request, body, [b"data: %s\n\n" % orjson.dumps(event) for event in events] + [_DONE])

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if not body.get("stream"):
            choices = [{"index": 0, "text": REPLY, "finish_reason": "stop", "logprobs": None}]
            return web.json_response(_completion(body, object="text_completion", choices=choices, usage=USAGE))
        words = [(word, None) for word in _words(REPLY)] + [("", "stop")]
        choices = [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None} for text, reason in words]
        events = [_completion(body, object="text_completion", choices=[choice]) for choice in choices]
        return await self._stream(request, body, [b"data: %s\n\n" % orjson.dumps(event) for event in events] + [_DONE])

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [{"object": "embedding", "index": i, "embedding": [float(len(t)), 0.5]} for i, t in enumerate(texts)]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    # ------------------------------------------------------------------------------------------- responses, messages

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        content = [{"type": "output_text", "text": REPLY, "annotations": []}]
        item_id = f"msg_{len(self.seen)}"
        item = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}
        answer = {
            "id": f"resp_{len(self.seen)}",
            "object": "response",
            "previous_response_id": body.get("previous_response_id"),
            "created_at": 1,
            "status": "completed",
            "model": body["model"],
            "output": [item],
            "usage": {**TOKENS, "total_tokens": 12},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "vendor": body.get("vendor"),
        }
        if not body.get("stream"):
            return web.json_response(answer)
        started = {**answer, "status": "in_progress", "output": [], "usage": None}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": started}]
        events += [
            {
                "type": "response.output_text.delta",
                "item_id": item_id,
                "output_index": 0,
                "content_index": 0,
                "delta": w,
            }
            for w in _words(REPLY)
        ]
        events.append({"type": "response.completed", "response": answer})
        return await self._stream(request, body, [_named(e | {"sequence_number": n}) for n, e in enumerate(events)])

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if refusal := _anthropic_refusal(body):
            return refusal
        block: dict[str, Any] = {"type": "text", "text": REPLY}
        if body.get("tools"):
            block = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
        answer = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [block],
            "stop_reason": "tool_use" if body.get("tools") else "end_turn",
            "stop_sequence": None,
            "usage": TOKENS,
            "vendor": body.get("vendor"),
        }
        if not body.get("stream"):
            return web.json_response(answer)
        return await self._stream(request, body, [_named(event) for event in _message_events(answer, block)])

    async def _ollama(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        parts = _words(REPLY) if body.get("stream") else [REPLY]
        lines = [{"model": body["model"], "message": {"role": "assistant", "content": part}} for part in parts]
        counts = {"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 5}
        whole = [{**line, "created_at": "2026-01-01T00:00:00Z", "done": False} for line in lines]
        whole[-1] |= counts
        text = b"\n".join(orjson.dumps(line) for line in whole)
        return web.Response(
            body=text, content_type="application/x-ndjson" if body.get("stream") else "application/json"
        )

    async def _stream(self, request: web.Request, body: dict[str, Any], events: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await response.prepare(request)
            for number, event in enumerate(events):
                await response.write(event)
                if number == 1 and "stall" in orjson.dumps(body).decode():
                    while request.transport is not None and not request.transport.is_closing():
                        await asyncio.sleep(0.005)
                    self.dropped.set()
                    return response
        except (ConnectionError, asyncio.CancelledError):
            self.dropped.set()
            raise
        await response.write_eof()
        return response


_DONE = b"data: [DONE]\n\n"


def _named(event: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


def _completion(body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "created": 1, "model": body["model"], "vendor": body.get("vendor"), **fields}


def _refusal(body: dict[str, Any]) -> web.Response | None:
    """An error where the last message asks for one: `please fail 429`."""
    text = body["messages"][-1].get("content")
    if isinstance(text, list):
        text = text[0].get("text")
    if not isinstance(text, str) or not text.startswith("please fail "):
        return None
    headers = {"retry-after": "7"} if text.endswith("429") else {}
    error = {"message": "refused as asked", "type": "some_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=int(text[-3:]), headers=headers)


def _anthropic_refusal(body: dict[str, Any]) -> web.Response | None:
    refusal = _refusal(body)
    if refusal is not None:
        kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}.get(refusal.status)
        error = {"type": kind or "api_error", "message": "refused as asked"}
        refusal.body = orjson.dumps({"type": "error", "error": error})
    return refusal


def _chat_message(body: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": REPLY, "refusal": None}
    if "think" in str(body["messages"][-1].get("content")):
        message["reasoning_content"] = "France, so Paris."
    if (body.get("response_format") or {}).get("type") == "json_schema":
        message["content"] = PERSON
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        cities = CITIES[:1] if body.get("parallel_tool_calls") is False else CITIES
        name = body["tools"][0]["function"]["name"]
        message |= {"content": None, "tool_calls": [_tool_call(i, name, city) for i, city in enumerate(cities)]}
        if "name" in body["tools"][0]["function"].get("parameters", {}).get("properties", {}):
            message["tool_calls"] = message["tool_calls"][:1]
            message["tool_calls"][0]["function"]["arguments"] = PERSON
    return message


def _tool_call(index: int, name: str, city: str) -> dict[str, Any]:
    arguments = orjson.dumps({"city": city}).decode()
    return {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _choice(index: int, message: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    logprobs = {"content": [{"token": "The", "logprob": -0.1, "bytes": [84], "top_logprobs": []}], "refusal": None}
    return {
        "index": index,
        "message": message,
        "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
        "logprobs": logprobs if body.get("logprobs") else None,
    }


def _deltas(index: int, message: dict[str, Any]) -> list[dict[str, Any]]:
    """Chunks as vLLM cuts them: role, reasoning, words, then each tool call's name and its arguments in two halves."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if reasoning := message.get("reasoning_content"):
        deltas += [{"reasoning_content": word} for word in _words(reasoning)]
    if content := message["content"]:
        deltas += [{"content": word} for word in _words(content)]
    for number, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        head, tail = arguments[:5], arguments[5:]
        opening = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": number, "id": call["id"], "type": "function", "function": opening}]})
        deltas += [{"tool_calls": [{"index": number, "function": {"arguments": part}}]} for part in (head, tail)]
    chunks = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    return [*chunks, {"index": index, "delta": {}, "finish_reason": reason}]


def _message_events(answer: dict[str, Any], block: dict[str, Any]) -> list[dict[str, Any]]:
    started = {**answer, "content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 1}}
    if block["type"] == "text":
        opening, deltas = (
            {**block, "text": ""},
            [{"type": "text_delta", "text": word} for word in _words(block["text"])],
        )
    else:
        whole = orjson.dumps(block["input"]).decode()
        opening = {**block, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in (whole[:5], whole[5:])]
    end = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    return [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": opening},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
