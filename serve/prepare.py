"""What is sent to the expert: the client's body with the expert's model, system prompt and sampling put in."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from ..experts.backends import Sampling
from .requests import Api, Request
from .snapshot import Target

# Where an API calls a sampling default otherwise, or has none (None).
_RENAMED: dict[Api, dict[str, str | None]] = {
    Api.CHAT: {},
    Api.COMPLETIONS: {},
    Api.RESPONSES: {
        "max_tokens": "max_output_tokens", "stop": None, "presence_penalty": None, "frequency_penalty": None,
    },
    Api.MESSAGES: {"stop": "stop_sequences", "presence_penalty": None, "frequency_penalty": None},
}  # fmt: skip
_SAME_LIMIT = ("max_tokens", "max_completion_tokens")
_MAXIMA: dict[Api, tuple[str, ...]] = {
    Api.CHAT: ("max_tokens", "max_completion_tokens"),
    Api.COMPLETIONS: ("max_tokens",),
    Api.RESPONSES: ("max_output_tokens",),
    Api.MESSAGES: ("max_tokens",),
}


def upstream_body(request: Request, target: Target) -> dict[str, object]:
    """The body for the expert. What the client set itself stands over the card's sampling."""
    body = dict(request.body)
    body["model"] = target.model
    if target.system_prompt is not None:
        _instruct(request.api, body, target.system_prompt)
    for name, value in _defaults(request.api, target.sampling).items():
        taken = _SAME_LIMIT if name == "max_tokens" else (name,)
        if all(body.get(key) is None for key in taken):
            body[name] = value
    if target.limits.max_output_tokens is not None:
        _clamp(request.api, body, target.limits.max_output_tokens)
    _salt(body, request.tenant, target)
    return body


def _clamp(api: Api, body: dict[str, object], limit: int) -> None:
    """Keep the completion inside the card's limit; a completion without a maximum has 16 tokens anyway."""
    given = [name for name in _MAXIMA[api] if body.get(name) is not None]
    for name in given:
        value = body[name]
        body[name] = min(value, limit) if isinstance(value, int) else limit
    if not given and api is not Api.COMPLETIONS:
        body[_MAXIMA[api][0]] = limit


def _salt(body: dict[str, object], tenant: str, target: Target) -> None:
    """Give each key a prefix cache of its own on our engines: its time would tell one what another asked.

    A client's own salt divides its part further. Elsewhere nothing is known of salts, and none is sent.
    """
    own = body.pop("cache_salt", None)
    if target.vouched and (tenant or own is not None):
        text = f"cache:{tenant}\0{own if isinstance(own, str) else ''}"
        body["cache_salt"] = hmac.new((target.key or "").encode(), text.encode(), hashlib.sha256).hexdigest()


def _defaults(api: Api, sampling: Sampling) -> dict[str, object]:
    given: dict[str, object] = sampling.model_dump(exclude_none=True)
    renamed = {_RENAMED[api].get(name, name): value for name, value in given.items()}
    return {name: value for name, value in renamed.items() if name is not None}


def _instruct(api: Api, body: dict[str, object], prompt: str) -> None:
    """Put the expert's prompt where the API has its instructions, in front of the client's own."""
    if api is Api.CHAT:
        body["messages"] = _with_system(body["messages"], prompt)
    elif api is Api.RESPONSES:
        body["instructions"] = _joined(prompt, body.get("instructions"))
    elif api is Api.MESSAGES:
        body["system"] = _joined(prompt, body.get("system"))


def _with_system(messages: object, prompt: str) -> list[object]:
    """One system message: many chat templates refuse a second."""
    listed = list(messages) if isinstance(messages, list) else []
    first = listed[0] if listed else None
    if isinstance(first, Mapping) and first.get("role") == "system":
        return [{**first, "content": _joined(prompt, first.get("content"))}, *listed[1:]]
    return [{"role": "system", "content": prompt}, *listed]


def _joined(prompt: str, own: object) -> object:
    if isinstance(own, str) and own:
        return f"{prompt}\n\n{own}"
    if isinstance(own, list) and own:
        return [{"type": "text", "text": prompt}, *own]
    return prompt
