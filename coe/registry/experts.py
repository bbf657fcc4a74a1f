"""Schema of an entry of `experts` in experts.yaml (`ExpertSpec`), with its prices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from coe.core import Api, Capability
from coe.registry.runtimes import AUTO, LOCAL_RUNTIMES, RUNTIMES, ModelTable, RuntimeName, lookup
from coe.registry.sections import Count, Flag, Name, Positive, StrictModel, Url

_CODES = """
    ace af am an ar as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga
    gcf gcr gd gl gom grc gu gug guw ha he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg
    lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk
    sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz vec vi vo wa xh yo zh zu
"""
LANGUAGES = frozenset(_CODES.split())
"""ISO 639 codes of the languages that the gateway identifies."""


def _check_language(code: str) -> str:
    """Reject a language that no request has."""
    if code not in LANGUAGES:
        raise PydanticCustomError("language", "no language that is identified; write an ISO 639 code such as en or zh")
    return code


Language = Annotated[str, Field(min_length=2, max_length=3), AfterValidator(_check_language)]


_Models = Literal["models", "model_list", "model_group", "deployment_id", "lora", "lora_path"]
_Providers = Literal["provider", "custom_llm_provider", "route", "preset", "plugins", "transforms", "tags"]
_Fallbacks = Literal["fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "fallback_config"]
_Servers = Literal["api_base", "base_url", "api_key", "api_version", "kv_transfer_params", "bootstrap_host"]
_Settings = Literal["user_config", "litellm_credential_name", "litellm_metadata", "extra_body", "extra_headers"]
_Options = Literal["providerOptions", "orq"]
SelectingField = Literal[_Models, _Providers, _Fallbacks, _Servers, _Settings, _Options]
"""Body fields that select a model, adapter or server behind an expert's server: at OpenRouter, LiteLLM, Vercel, Orq and
AssemblyAI, and at vLLM, SGLang and llama.cpp."""


class Prices(StrictModel):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """Price of input tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """Price of output tokens."""
    cached_input: Annotated[float, Field(ge=0)] | None = None
    """Price of input tokens that the server reads from its prompt cache, at most the price of input tokens. Default:
    the price of input tokens."""

    @model_validator(mode="after")
    def _check_cached_input(self) -> Prices:
        if self.cached_input is not None and self.cached_input > self.input:
            raise PydanticCustomError("cached_input", "cached_input is above input, of which it is a discounted part")
        return self

    @property
    def cached(self) -> float:
        """Price of cached input tokens, declared or not."""
        return self.input if self.cached_input is None else self.cached_input

    def cost(self, input_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """Return US dollars. The cached tokens are a part of the input tokens."""
        full = (input_tokens - cached_tokens) * self.input + output_tokens * self.output
        return (full + cached_tokens * self.cached if cached_tokens else full) / 1e6

    def known_cost(self, input_tokens: float | None, output_tokens: float | None) -> float | None:
        """Return US dollars; None if a number of tokens is unknown."""
        return None if input_tokens is None or output_tokens is None else self.cost(input_tokens, output_tokens)


ServerKey = tuple[object, ...]
"""Identity of a local server: experts with equal keys share one, adapters included."""


class ExpertSpec(StrictModel):
    """One expert: a model, how to run or reach it, and its defaults."""

    name: Name
    """Name of the expert. A client that sends it as `model` pins this expert."""
    model: str = Field(min_length=1)
    """Model folder or hub name, the embedded default SmolLM2-135M-Instruct, a GGUF file for llama.cpp, the name that
    Ollama or the external server gives it, or `provider/model` for runtime litellm."""
    runtime: RuntimeName
    """The way to reach the model: a local server that CoE starts (transformers, vllm, llama.cpp, sglang, ollama), an
    OpenAI-compatible server that already runs (external), or any other provider (litellm)."""
    base_url: Url | None = None
    """URL of an external OpenAI-compatible server, including /v1."""
    base_urls: tuple[Url, ...] = ()
    """URLs of several replicas of the external server, in place of base_url."""
    local: bool = False
    """The external server is your own, so that it may receive requests that only local experts may receive. Experts
    whose server CoE starts are local without it."""
    apis: frozenset[Api] | None = None
    """APIs that the server supports. Default: chat; for servers that CoE starts also completions, for vllm and
    llama.cpp the four for text. Where Responses and Messages are missing, CoE translates them. `rerank` and below pass
    through unread."""
    api_key: SecretStr | None = None
    """API key of the server. Write ${NAME} and keep the key in the environment."""
    system_prompt: str | None = None
    """System prompt, inserted before the client's own."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Defaults for body fields that the request does not set, such as temperature or max_tokens."""
    allowed_fields: frozenset[SelectingField] = frozenset()
    """Fields of a client's request that reach the server although they can select another model or server behind it,
    such as models, provider or fallbacks at a gateway. Others of this list are left out."""
    options: dict[str, Flag] = Field(default_factory=dict)
    """Command-line options of the local server, such as max-model-len: 4096. For runtime ollama they are environment
    variables: context-length is OLLAMA_CONTEXT_LENGTH."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder of a LoRA adapter in PEFT format for `model`, relative to this file (runtime vllm). Experts with the same
    model, options and gpus share a server."""
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """GPUs of the local server, numbered as by nvidia-smi. Several GPUs hold the model together."""
    replicas: Count = 1
    """Number of servers of this expert in the cluster, for `coe up --executor ray`."""
    device: Name | None = None
    """With `residency`: the device of this expert. Required if several are declared."""
    pinned: bool = False
    """With `residency`: the expert is always awake."""
    sleep_level: Literal[1, 2] | None = None
    """With `residency` and runtime vllm, sglang or ollama: sleep instead of stop. Level 1 keeps the weights in RAM and
    wakes in about a second; level 2 discards them (ollama: 2 only). vLLM's options need enable-sleep-mode: true."""
    stand_in: Name | None = None
    """With `residency`: an expert that answers while this one is woken, such as a smaller or quantised model."""
    context_length: Count = 8192
    """Largest number of tokens of prompt and answer together."""
    capabilities: frozenset[Capability] = frozenset()
    """Capabilities of the model, or `auto` to look them up in the options of a local server and in litellm's table of
    models; an unknown model then gets requests with tools or a JSON schema, and its server may refuse them. Requests
    that need a missing capability go to other experts. `files` (PDF), `json_object`,
    `n` (several answers), `logprobs` and `echo` are optional: requests that need one go to the experts that declare it,
    or to any expert if none does. An expert with json_schema has json_object too."""
    languages: frozenset[Language] | None = None
    """Languages of the model by ISO 639 code, such as [en, de]. Requests in another language go to other experts, if
    any of them speaks it. Default: all languages."""
    concurrent_requests: Count | None = None
    """Number of requests in flight per replica at which the expert counts as overloaded. Default: when its server
    reports a queue."""
    active_parameters_b: Positive | None = None
    """Parameters used per token, in billions."""
    memory_gb: Positive | None = None
    """Memory of the local server in GB."""
    stream_idle_timeout: Positive | None = None
    """Longest pause within a stream of this expert, in seconds. Default: that of `policy`."""
    latency_ms: Positive | None = None
    """Usual time of a response in milliseconds, for `budget.mean_latency_ms` until `coe score` measures it."""
    prices: Prices = Prices()
    """Prices of the model."""

    @field_validator("capabilities", mode="before", json_schema_input_type=Literal["auto"] | frozenset[Capability])
    @classmethod
    def _look_up(cls, declared: Any, info: ValidationInfo) -> Any:
        """Replace `auto` by what is known. The fields that it depends on are validated before."""
        if declared != AUTO or not info.data.keys() >= {"runtime", "model", "options"}:
            return declared
        table = info.context if isinstance(info.context, ModelTable) else ModelTable()
        return lookup(info.data["runtime"], info.data["model"], info.data["options"], table)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The declared base URLs, one per replica; empty for a local expert, whose address `coe up` publishes."""
        if self.runtime in LOCAL_RUNTIMES:
            return ()
        return (self.base_url,) if self.base_url else self.base_urls

    @property
    def is_local(self) -> bool:
        """True if requests to it stay on machines of the operator."""
        return self.local or self.runtime in LOCAL_RUNTIMES

    @property
    def server_key(self) -> ServerKey:
        """Identity of its local server, the same for all ways to write the model and the options."""
        options = tuple(f"{name}={value!r}" for name, value in sorted(normalized_options(self.options).items()))
        model = full_ollama_name(self.model) if self.runtime == "ollama" else self.model
        sleep_level = self.sleep_level if RUNTIMES[self.runtime].sleep_options else None
        return self.runtime, model, options, self.gpus, sleep_level

    @property
    def has_known_price(self) -> bool:
        """False if calls may cost money that nothing declares. Without `prices`, CoE's own servers cost nothing."""
        return self.runtime in LOCAL_RUNTIMES or "prices" in self.model_fields_set

    @cached_property
    def supported_apis(self) -> frozenset[Api]:
        """APIs that its server supports."""
        return self.apis if self.apis is not None else RUNTIMES[self.runtime].apis


def normalized_options(options: Mapping[str, Flag]) -> dict[str, Flag]:
    """Return the options of a server with their names as on the command line."""
    return {name.replace("_", "-").removeprefix("--"): value for name, value in options.items()}


def full_ollama_name(model: str) -> str:
    """Return the name of a model of Ollama with its tag, which is `latest` by default."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"
