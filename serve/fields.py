"""Checks of single request fields: each takes a value and the field's path and raises ApiError when it does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .errors import ApiError

Check = Callable[[object, str], None]


def invalid(param: str, wanted: str) -> ApiError:
    return ApiError("invalid_value", f"{param} must be {wanted}.", param)


def string(limit: int = 1024) -> Check:
    def check(value: object, param: str) -> None:
        if not isinstance(value, str) or len(value) > limit:
            raise invalid(param, f"a string of at most {limit} characters")

    return check


def text(value: object, param: str) -> None:
    if not isinstance(value, str):
        raise invalid(param, "a string")


def boolean(value: object, param: str) -> None:
    if not isinstance(value, bool):
        raise invalid(param, "true or false")


def integer(low: int, high: int = 2**31 - 1) -> Check:
    def check(value: object, param: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid(param, f"an integer from {low} to {high}")

    return check


def number(low: float, high: float) -> Check:
    def check(value: object, param: str) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(float(str(value))) or not low <= float(str(value)) <= high:
            raise invalid(param, f"a number from {low:g} to {high:g}")

    return check


def mapping(limit: int = 1024) -> Check:
    def check(value: object, param: str) -> None:
        if not isinstance(value, dict) or len(value) > limit:
            raise invalid(param, f"an object of at most {limit} entries")

    return check


def objects(limit: int) -> Check:
    def check(value: object, param: str) -> None:
        if not isinstance(value, list) or len(value) > limit:
            raise invalid(param, f"a list of at most {limit} objects")
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise invalid(f"{param}[{index}]", "an object")

    return check


def either(*checks: Check, wanted: str) -> Check:
    """One of several shapes; `wanted` says which in words."""

    def check(value: object, param: str) -> None:
        for one in checks:
            try:
                return one(value, param)
            except ApiError:
                continue
        raise invalid(param, wanted)

    return check


def stops(value: object, param: str) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(item, str) for item in value):
        raise invalid(param, "a string or a list of at most 64 strings")


def prompt(value: object, param: str) -> None:
    """A text, several texts, token ids, or several lists of token ids."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise invalid(param, "a string, a list of strings, or token ids")
    if all(isinstance(item, str) for item in value) or _are_tokens(value):
        return
    if not all(isinstance(item, list) and item and _are_tokens(item) for item in value):
        raise invalid(param, "a string, a list of strings, or token ids")


def _are_tokens(value: list[object]) -> bool:
    return all(type(item) is int and item >= 0 for item in value)


def response_format(value: object, param: str) -> None:
    kinds = ("text", "json_object", "json_schema")
    if not isinstance(value, dict):
        raise invalid(param, "an object")
    if value.get("type") not in kinds:
        raise invalid(f"{param}.type", f"one of {', '.join(kinds)}")
    if value["type"] == "json_schema" and not isinstance(value.get("json_schema"), dict):
        raise invalid(f"{param}.json_schema", "an object")


def check_fields(body: Mapping[str, object], checks: Mapping[str, Check], required: tuple[str, ...]) -> None:
    """Apply each field's check; null counts as absent.

    Raises:
        ApiError: the first field that does not fit.
    """
    for name in required:
        if body.get(name) is None:
            raise ApiError("invalid_value", f"{name} is missing.", name)
    for name, check in checks.items():
        value = body.get(name)
        if value is not None:
            check(value, name)
