"""Checks of chat messages and their content parts, in OpenAI's and Anthropic's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .errors import ApiError
from .fields import invalid

MAX_MESSAGES = 2048
_CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_INSTRUCTIONS = ("system", "developer")
_ANTHROPIC_PARTS = ("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking")


def chat(value: object, param: str) -> None:
    """OpenAI's `messages`: known roles, content where it is needed, somebody besides the system speaking."""
    roles = [_chat_message(message, f"{param}[{index}]") for index, message in _listed(value, param)]
    if all(role in _INSTRUCTIONS for role in roles):
        raise invalid(param, "messages with at least one that is not the system's")


def anthropic(value: object, param: str) -> None:
    """Anthropic's `messages`: user and assistant turns of text or blocks."""
    for index, message in _listed(value, param):
        at = f"{param}[{index}]"
        if not isinstance(message, dict):
            raise invalid(at, "an object")
        if message.get("role") not in ("user", "assistant"):
            raise invalid(f"{at}.role", "user or assistant")
        _content(message.get("content"), f"{at}.content", _anthropic_part)


def _listed(value: object, param: str) -> Iterator[tuple[int, object]]:
    if not isinstance(value, list) or not value:
        raise invalid(param, "a list of at least one message")
    if len(value) > MAX_MESSAGES:
        raise invalid(param, f"a list of at most {MAX_MESSAGES} messages")
    return enumerate(value)


def _chat_message(message: object, at: str) -> str:
    if not isinstance(message, dict):
        raise invalid(at, "an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _CHAT_ROLES:
        raise invalid(f"{at}.role", f"one of {', '.join(_CHAT_ROLES)}")
    content = message.get("content")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise invalid(f"{at}.tool_calls", "a list of objects")
    if content is None and role == "assistant" and (calls or message.get("function_call") or message.get("refusal")):
        return role
    _content(content, f"{at}.content", _chat_part)
    return role


def _content(content: object, at: str, part: Callable[[dict[str, object], str], None]) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise invalid(at, "a string or a list of parts")
    for index, item in enumerate(content):
        if not isinstance(item, dict):
            raise invalid(f"{at}[{index}]", "an object")
        part(item, f"{at}[{index}]")


def _chat_part(part: dict[str, object], at: str) -> None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        if not isinstance(part.get(str(kind)), str):
            raise invalid(f"{at}.{kind}", "a string")
    elif kind == "image_url":
        image = part.get("image_url")
        _image_data(image.get("url") if isinstance(image, dict) else image, f"{at}.image_url.url")
    else:
        raise invalid(f"{at}.type", "text, image_url or refusal")


def _anthropic_part(part: dict[str, object], at: str) -> None:
    kind = part.get("type")
    if kind not in _ANTHROPIC_PARTS:
        raise invalid(f"{at}.type", f"one of {', '.join(_ANTHROPIC_PARTS)}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise invalid(f"{at}.text", "a string")
    if kind == "image":
        source = part.get("source")
        if not isinstance(source, dict) or source.get("type") != "base64" or not isinstance(source.get("data"), str):
            raise invalid(f"{at}.source", "of type base64 with its data; addresses are not fetched")
    if kind == "tool_result" and part.get("content") is not None:
        _content(part["content"], f"{at}.content", _anthropic_part)


def _image_data(url: object, at: str) -> None:
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise invalid(at, "a data:image/... URL; addresses are not fetched")


def responses_input(value: object, param: str) -> None:
    """The responses API's `input`: a text, or items."""
    if isinstance(value, str):
        return
    for index, item in _listed(value, param):
        at = f"{param}[{index}]"
        if not isinstance(item, dict):
            raise invalid(at, "an object")
        if item.get("type", "message") != "message":
            continue
        if item.get("role") not in ("system", "developer", "user", "assistant"):
            raise invalid(f"{at}.role", "one of system, developer, user, assistant")
        _content(item.get("content"), f"{at}.content", _responses_part)


def _responses_part(part: dict[str, object], at: str) -> None:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        if not isinstance(part.get("text"), str):
            raise invalid(f"{at}.text", "a string")
    elif kind == "input_image":
        _image_data(part.get("image_url"), f"{at}.image_url")
    elif kind != "refusal":
        raise invalid(f"{at}.type", "input_text, output_text or input_image")


def parts(value: object) -> Iterator[dict[str, object]]:
    """Every content part of checked messages or input items, those inside tool results included."""
    for message in value if isinstance(value, list) else []:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict):
                yield part
                yield from parts([part])


def refuse(names: tuple[str, ...], body: dict[str, object]) -> None:
    """Raise unsupported_parameter for a field that no client may set here."""
    for name in names:
        if name in body:
            raise ApiError("unsupported_parameter", f"{name} is not accepted by this endpoint.", name)
