"""Strict JSON: UTF-8 only, no duplicate keys, no numbers beyond a double, bounded depth and size."""

from __future__ import annotations

import re

import orjson

from .errors import ApiError

MAX_DEPTH = 64
MAX_ITEMS = 200_000

# Strings with what they hold, so that what is left is structure. Possessive, and no end of the input fails: a string
# that is never closed would else be tried from each of its escaped quotes, in time that grows with the square.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NESTED = (dict, list)
_INVALID_UNICODE = ("surrogate", "UTF-8", "utf-8")


def loads(raw: bytes) -> object:
    """Parse one document.

    Raises:
        ApiError: invalid_json, invalid_unicode or invalid_value.
    """
    structure = _structure(raw)
    if _items(structure) > MAX_ITEMS:
        raise ApiError("invalid_value", f"The body holds more than {MAX_ITEMS} items.", "body")
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _refusal(error) from error
    if _keys(value) != structure.count(b":"):
        raise ApiError("invalid_json", "The body holds the same key twice in one object.", "body")
    return value


def _structure(raw: bytes) -> bytes:
    """The document without its strings, as far as they can be ones of a document that is not too large."""
    return _STRINGS.sub(b"", raw, count=MAX_ITEMS + 1)


def _items(structure: bytes) -> int:
    """Keys and values: each but the document itself comes after one of these, an empty container is two."""
    return sum(structure.count(mark) for mark in (b",", b":", b"[", b"{"))


def _refusal(error: orjson.JSONDecodeError) -> ApiError:
    if "depth limit" in error.msg:
        return _too_deep()
    if "infinity" in error.msg:
        return ApiError("invalid_value", f"A number is too large at character {error.pos}.", "body")
    if any(word in error.msg for word in _INVALID_UNICODE):
        return ApiError("invalid_unicode", "The body is not valid Unicode: lone surrogate, bad UTF-8 or a BOM.", "body")
    return ApiError("invalid_json", f"The body is not valid JSON: {error.msg.split(':')[0]}, {_place(error)}.", "body")


def _place(error: orjson.JSONDecodeError) -> str:
    return f"line {error.lineno} column {error.colno}"


def _too_deep() -> ApiError:
    return ApiError("invalid_value", f"The body is nested deeper than {MAX_DEPTH} levels.", "body")


def _keys(value: object) -> int:
    """How many keys all objects hold together.

    Raises:
        ApiError: it is nested too deep.
    """
    total = 0
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                total += len(item)
                below += [inner for inner in item.values() if type(inner) in _NESTED]
            elif isinstance(item, list):
                below += [inner for inner in item if type(inner) in _NESTED]
        if not below:
            return total
        level = below
    raise _too_deep()
