"""The admin API: list, add, replace and remove experts while the endpoint serves. Loopback only, own key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..experts.card import Card, CardError, parse_card
from ..experts.registry import ConflictError, ExpertRecord, Registry, RegistryError, UnknownExpertError
from .auth import Keyring, is_admin
from .body import ClientGoneError, read_body
from .errors import ApiError
from .yaml_body import parse_body

MAX_CARD = 256 * 1024
BODY_TIME = 30.0

Check = Callable[[Card, Sequence[ExpertRecord]], None]
"""Raises CardError when a card cannot work beside the existing experts."""


def create_admin_app(registry: Registry, admin_key: str, check: Check) -> Starlette:
    """The application; every path but /admin/health asks for `Authorization: Bearer <admin key>`.

    The state folder's key counts, and any key with the admin scope.
    """
    admin = _Admin(registry, check)

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            keyring = Keyring(await asyncio.to_thread(registry.keys))
            if not is_admin(request.headers.raw, admin_key, keyring):
                raise ApiError("invalid_api_key", "The admin key is needed: Authorization: Bearer KEY.")
            return await handler(request)

        return handle

    one = "/admin/experts/{name}"
    return Starlette(
        routes=[
            Route("/admin/health", _health, methods=["GET"]),
            Route("/admin/experts", guarded(admin.listed), methods=["GET"]),
            Route("/admin/experts", guarded(admin.add), methods=["POST"]),
            Route(one, guarded(admin.show), methods=["GET"]),
            Route(one, guarded(admin.replace), methods=["PUT"]),
            Route(one, guarded(admin.remove), methods=["DELETE"]),
        ],
        exception_handlers={
            ApiError: _refused,
            HTTPException: _http_error,
            CardError: _bad_card,
            UnknownExpertError: _unknown,
            ConflictError: _conflict,
            RegistryError: _unavailable,
            ClientGoneError: _gone,
            500: _crash,
        },
    )


class _Admin:
    def __init__(self, registry: Registry, check: Check) -> None:
        self._registry = registry
        self._check = check

    async def listed(self, request: Request) -> Response:
        records = await asyncio.to_thread(self._registry.experts)
        return _json(200, {"object": "list", "data": [record_json(record) for record in records]})

    async def show(self, request: Request) -> Response:
        return _record(200, await asyncio.to_thread(self._registry.expert, request.path_params["name"]))

    async def add(self, request: Request) -> Response:
        card = await _card(request)
        record = await asyncio.to_thread(self._add, card)
        return _record(201, record, {"location": f"/admin/experts/{card.name}"})

    async def replace(self, request: Request) -> Response:
        card = await _card(request)
        if card.name != request.path_params["name"]:
            raise ApiError("invalid_value", f"The card is named {card.name!r}, unlike the path.", "name")
        return _record(200, await asyncio.to_thread(self._replace, card, _expected(request)))

    async def remove(self, request: Request) -> Response:
        return _record(202, await asyncio.to_thread(self._registry.remove, request.path_params["name"]))

    def _add(self, card: Card) -> ExpertRecord:
        existing = self._registry.experts()
        if any(record.name == card.name for record in existing):
            return self._registry.add(card)  # which refuses it, without the check's wait
        self._check(card, existing)
        return self._registry.add(card)

    def _replace(self, card: Card, expected: int | None) -> ExpertRecord:
        self._registry.expert(card.name)
        self._check(card, [record for record in self._registry.experts() if record.name != card.name])
        return self._registry.replace(card, expected)


def record_json(record: ExpertRecord) -> dict[str, object]:
    """An expert as the admin API shows it."""
    return {
        "object": "expert",
        "name": record.name,
        "state": record.state.value,
        "reason": record.reason,
        "generation": record.generation,
        "removed": record.removed,
        "routable": record.routable,
        "updated": record.updated,
        "card": record.card.model_dump(mode="json", exclude_none=True),
    }


async def _card(request: Request) -> Card:
    raw = await read_body(request.receive, request.headers.raw, MAX_CARD, BODY_TIME)
    body = parse_body(raw, request.headers.get("content-type", ""))
    return await asyncio.to_thread(parse_card, body)


def _expected(request: Request) -> int | None:
    """The generation that If-Match names."""
    tag = request.headers.get("if-match")
    if tag is None or tag == "*":
        return None
    match = re.fullmatch(r'"?([0-9]{1,18})"?', tag.strip())
    if match is None:
        raise ApiError("invalid_value", 'If-Match must be a generation, like "3".', "if-match")
    return int(match[1])


async def _health(request: Request) -> Response:
    return _json(200, {"status": "ok"})


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def _record(status: int, record: ExpertRecord, headers: dict[str, str] | None = None) -> Response:
    return _json(status, record_json(record), {"etag": f'"{record.generation}"', **(headers or {})})


def _envelope(error: ApiError) -> Response:
    response = Response(error.body(), error.status, media_type="application/json")
    for name, value in error.headers():
        response.headers[name.decode()] = value.decode()
    return response


async def _refused(request: Request, error: Exception) -> Response:
    return _envelope(error if isinstance(error, ApiError) else ApiError("internal_error", "Internal error."))


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        return _envelope(ApiError("method_not_allowed", "This path does not take that method."))
    return _envelope(ApiError("not_found", "There is nothing at this path; see docs/api.md."))


async def _bad_card(request: Request, error: Exception) -> Response:
    return _envelope(ApiError("invalid_value", str(error), "card"))


async def _unknown(request: Request, error: Exception) -> Response:
    return _envelope(ApiError("not_found", str(error), "name"))


async def _conflict(request: Request, error: Exception) -> Response:
    codes = {"POST": "already_exists", "PUT": "registry_version_conflict"}
    return _envelope(ApiError(codes.get(request.method, "in_use"), str(error), "name"))


async def _unavailable(request: Request, error: Exception) -> Response:
    return _envelope(ApiError("registry_unavailable", "The registry cannot be reached; nothing was changed."))


async def _gone(request: Request, error: Exception) -> Response:
    return _envelope(ApiError("request_incomplete", "The body is not whole."))


async def _crash(request: Request, error: Exception) -> Response:
    return _envelope(ApiError("internal_error", "Internal error."))
