"""Other people's clients against the gateway: litellm, LangChain and the llm command line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.gateway_server import KEY
from tests.clients.model_server import CITIES, REPLY

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own warnings are not ours to mend
HI: Any = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    """Someone."""

    name: str
    age: int


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


# ------------------------------------------------------------------------------------------------------------ litellm


@pytest.fixture
def litellm_arguments(gateway: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LITELLM_MODE", "PRODUCTION")
    return {"model": "openai/auto", "api_base": f"{gateway}/v1", "api_key": KEY, "max_retries": 0, "num_retries": 0}


def test_litellm_completes_and_streams(litellm_arguments: dict[str, Any]) -> None:
    import litellm

    async def send_chat() -> tuple[str, str]:
        async with own_client(litellm_arguments) as client:
            answer: Any = await litellm.acompletion(messages=HI, client=client, **litellm_arguments)
            stream: Any = await litellm.acompletion(messages=HI, stream=True, client=client, **litellm_arguments)
            words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return answer.choices[0].message.content, "".join(words)

    assert asyncio.run(send_chat()) == (REPLY, REPLY)


def test_litellm_knows_the_gateways_errors(litellm_arguments: dict[str, Any]) -> None:
    import litellm

    async def send_chat() -> None:
        async with own_client(litellm_arguments) as client:
            await litellm.acompletion(messages=HI, client=client, **litellm_arguments | {"model": "openai/gpt-9"})

    litellm.suppress_debug_info = True
    with pytest.raises(litellm.NotFoundError):
        asyncio.run(send_chat())


def own_client(arguments: dict[str, Any]) -> openai.AsyncOpenAI:
    """An event loop for one test, because a later test would find litellm's own connections open."""
    return openai.AsyncOpenAI(base_url=arguments["api_base"], api_key=arguments["api_key"], max_retries=0)


# ---------------------------------------------------------------------------------------------------------- LangChain


@pytest.fixture
def model(gateway: str) -> Iterator[Any]:
    import httpx
    from langchain_openai import ChatOpenAI

    with httpx.Client() as client:
        yield ChatOpenAI(model="native", base_url=f"{gateway}/v1", api_key=KEY, max_retries=0, http_client=client)


def test_langchain_invokes_and_streams(model: Any) -> None:
    assert model.invoke("hi").content == REPLY
    assert "".join(chunk.content for chunk in model.stream("hi")) == REPLY
    assert model.invoke("hi").usage_metadata["output_tokens"] == 5


def test_langchain_binds_tools(model: Any) -> None:
    calls = model.bind_tools([GetWeather]).invoke("hi").tool_calls
    assert [(call["name"], call["args"]) for call in calls] == [("GetWeather", {"city": city}) for city in CITIES]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structures_the_output(model: Any, method: str) -> None:
    assert model.with_structured_output(Person, method=method).invoke("hi") == Person(name="Ada", age=36)


# ---------------------------------------------------------------------------------------------------------------- llm


@pytest.mark.parametrize("flags", [(), ("--no-stream",)])
def test_the_llm_command_gets_an_answer(
    gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: coe\n  model_name: auto\n  api_base: {gateway}/v1\n  api_key_name: coe\n"
    )
    from click.testing import CliRunner
    from llm.cli import cli

    done = CliRunner().invoke(cli, ["prompt", "hi", "--model", "coe", "--key", KEY, "--no-log", *flags])
    assert done.exception is None, done.output
    assert done.output.strip() == REPLY
