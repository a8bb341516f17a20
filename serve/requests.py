"""A request body: parsed strictly, checked by API, with what it needs of an expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..router.decision import Needs
from . import fields, messages
from .errors import ApiError
from .fields import Check
from .strict_json import loads

CHARACTERS_PER_TOKEN = 4


class Api(StrEnum):
    """The four inference APIs; the value is the path under an expert's base URL."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


# Fields by which a client would steer where the request goes, with which key, what the engine loads, or let an engine
# look as if it had stalled.
_FORBIDDEN = (
    "api_base", "base_url", "api_key", "extra_headers", "extra_body", "extra_query", "timeout", "fallbacks",
    "chat_template", "kv_transfer_params", "ec_transfer_params", "stream_interval",
)  # fmt: skip
# Regular expressions and grammars that an engine compiles: only for experts whose card offers such output.
GRAMMARS = frozenset({"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"})
# The state lives in one expert's memory; the next request may go to another.
_STATEFUL = ("previous_response_id", "conversation")

_SAMPLING: dict[str, Check] = {
    "model": fields.string(),
    "stream": fields.boolean,
    "stream_options": fields.mapping(16),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1),
    "presence_penalty": fields.number(-2, 2),
    "frequency_penalty": fields.number(-2, 2),
    "n": fields.integer(1, 8),
    "seed": fields.integer(-(2**63), 2**63 - 1),
    "stop": fields.stops,
    "logit_bias": fields.mapping(1024),
    "max_tokens": fields.integer(1),
    "user": fields.string(),
}
_TOOLS: dict[str, Check] = {
    "tools": fields.objects(128),
    "tool_choice": fields.either(fields.string(), fields.mapping(), wanted="a string or an object"),
    "parallel_tool_calls": fields.boolean,
    "metadata": fields.mapping(64),
}
_CHECKS: dict[Api, dict[str, Check]] = {
    Api.CHAT: {
        **_SAMPLING,
        **_TOOLS,
        "messages": messages.chat,
        "max_completion_tokens": fields.integer(1),
        "logprobs": fields.boolean,
        "top_logprobs": fields.integer(0, 20),
        "response_format": fields.response_format,
    },
    Api.COMPLETIONS: {
        **_SAMPLING,
        "prompt": fields.prompt,
        "max_tokens": fields.integer(0),
        "best_of": fields.integer(1, 8),
        "echo": fields.boolean,
        "logprobs": fields.integer(0, 20),
        "suffix": fields.text,
        "response_format": fields.response_format,
    },
    Api.RESPONSES: {
        **_SAMPLING,
        **_TOOLS,
        "input": messages.responses_input,
        "instructions": fields.text,
        "max_output_tokens": fields.integer(1),
        "top_logprobs": fields.integer(0, 20),
        "text": fields.mapping(16),
        "store": fields.boolean,
    },
    Api.MESSAGES: {
        **_SAMPLING,
        **_TOOLS,
        "messages": messages.anthropic,
        "system": fields.either(fields.text, fields.objects(64), wanted="a string or a list of text blocks"),
        "stop_sequences": fields.stops,
        "top_k": fields.integer(-1),
    },
}
_REQUIRED: dict[Api, tuple[str, ...]] = {
    Api.CHAT: ("model", "messages"),
    Api.COMPLETIONS: ("model", "prompt"),
    Api.RESPONSES: ("model", "input"),
    Api.MESSAGES: ("model", "messages", "max_tokens"),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A checked body. `needs` has no allow-list yet: that comes with the key. `tenant` is the key's name, or empty.

    `timeout` is the client's own, in seconds.
    """

    api: Api
    model: str
    body: Mapping[str, object]
    needs: Needs
    tenant: str = ""
    timeout: float | None = None

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

    @property
    def prompt_tokens(self) -> int:
        """Estimated."""
        return self.needs.tokens - completion_tokens(self.body)

    @property
    def cost(self) -> int:
        """What it may use of a key's tokens: the prompt, and each of the `n` completions."""
        choices = self.body.get("n")
        more = (choices - 1) if isinstance(choices, int) else 0
        return self.needs.tokens + more * completion_tokens(self.body)


def parse_object(raw: bytes) -> dict[str, object]:
    """A JSON object.

    Raises:
        ApiError: 400 with the reason.
    """
    body = loads(raw)
    if not isinstance(body, dict):
        raise ApiError("invalid_value", "The body must be a JSON object.", "body")
    return body


def check(api: Api, body: dict[str, object]) -> Request:
    """Check the fields that matter; unknown ones pass through to the expert.

    Raises:
        ApiError: 400 with the exact field.
    """
    messages.refuse(_FORBIDDEN, body)
    if api is Api.RESPONSES:
        messages.refuse(_STATEFUL, body)
        if body.get("background"):
            raise ApiError("unsupported_parameter", "background is not accepted by this endpoint.", "background")
    fields.check_fields(body, _CHECKS[api], _REQUIRED[api])
    return Request(api, str(body["model"]), body, _needs(body))


def check_route(body: dict[str, object]) -> Request:
    """The body of /v1/route: any API's, or {"text": ...}; `model` may be left out.

    Raises:
        ApiError: 400 with the exact field.
    """
    body = {**body, "model": body.get("model") or "auto"}
    if isinstance(body.get("text"), str):
        return check(Api.COMPLETIONS, {"model": body["model"], "prompt": body["text"]})
    if "messages" in body:
        return check(Api.CHAT, body)
    if "input" in body:
        return check(Api.RESPONSES, body)
    if "prompt" in body:
        return check(Api.COMPLETIONS, body)
    raise ApiError("invalid_value", "The body needs text, messages, input or prompt.", "text")


def _needs(body: Mapping[str, object]) -> Needs:
    capabilities = set()
    if body.get("tools") and body.get("tool_choice") != "none":
        capabilities.add("tools")
    if _wants_schema(body) or wants_grammar(body):
        capabilities.add("json_schema")
    kinds = {part.get("type") for key in ("messages", "input") for part in messages.parts(body.get(key))}
    if kinds & {"image_url", "input_image", "image"}:
        capabilities.add("vision")
    return Needs(tokens=estimated_tokens(body), capabilities=frozenset(capabilities))


def wants_grammar(body: Mapping[str, object]) -> bool:
    """Whether an engine would have to compile something of the client's, besides a JSON schema."""
    return any(body.get(name) is not None for name in GRAMMARS)


def _wants_schema(body: Mapping[str, object]) -> bool:
    wanted = body.get("response_format")
    if isinstance(text := body.get("text"), dict):
        wanted = text.get("format")
    return isinstance(wanted, dict) and wanted.get("type") == "json_schema"


def estimated_tokens(body: Mapping[str, object]) -> int:
    """Prompt and completion: a token for four characters, rounded down, and what the client lets the expert write.

    It may be too low for code or Chinese; then the expert refuses for itself.
    """
    counted = (body.get(name) for name in ("messages", "input", "prompt", "system", "instructions"))
    return sum(map(_characters, counted)) // CHARACTERS_PER_TOKEN + completion_tokens(body)


def completion_tokens(body: Mapping[str, object]) -> int:
    """How much the client lets the expert write; 0 where it does not say."""
    written = (body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((value for value in written if isinstance(value, int)), 0)


def _characters(value: object) -> int:
    """Characters of all texts in it; a token id counts as one token's worth; image data does not count."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, list):
        return sum(map(_characters, value))
    if isinstance(value, dict):
        return sum(_characters(inner) for key, inner in value.items() if key not in ("role", "type", "data"))
    return CHARACTERS_PER_TOKEN if type(value) is int else 0
