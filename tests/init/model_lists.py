"""Lists of models in the forms of different servers, and servers that answer with them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.experts.fault_servers import COMPLETION, Answer

OLLAMA = [
    {"id": "llama3.2:3b", "object": "model", "created": 1727000000, "owned_by": "library"},
    {"id": "nomic-embed-text:latest", "object": "model", "created": 1720000000, "owned_by": "library"},
]
VLLM = [
    {"id": "Qwen/Qwen2.5-Coder-7B-Instruct", "created": 1764000000, "owned_by": "vllm", "max_model_len": 32768},
]
LLAMA_CPP = [
    {
        "id": "/models/gemma-3-4b-it-Q4_K_M.gguf",
        "owned_by": "llamacpp",
        "meta": {"n_ctx": 16384, "n_ctx_train": 131072, "n_params": 3880099328},
    },
]
LM_STUDIO = [
    {"id": "qwen3-30b-a3b", "object": "model", "owned_by": "organization_owner"},
    {"id": "text-embedding-nomic-embed-text-v1.5", "object": "model", "owned_by": "organization_owner"},
]
ANTHROPIC = [{"type": "model", "id": "claude-haiku-4-5-20251001", "created_at": "2025-10-15T00:00:00Z"}]


def listing(models: Any, *, key: str = "", envelope: bool = True) -> Answer:
    """Answer as an OpenAI-compatible server with these models; with a `key`, only to requests that send it."""
    names = {str(one["id"]) for one in models if isinstance(one, dict)}

    async def answer(request: web.Request) -> web.StreamResponse:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": models} if envelope else models)
        if request.path == "/v1/chat/completions" and (await request.json())["model"] in names:
            return web.json_response(COMPLETION)
        return web.json_response({"detail": "Not Found"}, status=404)

    return answer
