"""The guard inside an engine: nothing but health and metrics without the key, by whatever path."""

from __future__ import annotations

import pytest
from collegium.experts.guard import Guard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient


async def reached(request: Request) -> PlainTextResponse:
    return PlainTextResponse("reached")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("VLLM_API_KEY", "the-key")
    app = Starlette(routes=[Route("/{path:path}", reached, methods=["GET", "POST", "OPTIONS"])])
    return TestClient(Guard(app), root_path="/experts/general/abc")


@pytest.mark.parametrize("path", ["/adapters", "/invocations", "/v1/load_lora_adapter", "/tokenize", "/health/x", "/"])
@pytest.mark.parametrize("header", [None, "Bearer other", "the-key", "Bearer the-key ", "bearer the-key"])
def test_nothing_without_the_key(client: TestClient, path: str, header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    for method in ("GET", "POST", "OPTIONS"):
        assert client.request(method, f"/experts/general/abc{path}", headers=headers).status_code == 401


def test_with_the_key_and_what_is_open(client: TestClient) -> None:
    headers = {"authorization": "Bearer the-key"}
    assert client.post("/experts/general/abc/adapters", headers=headers).text == "reached"
    for path in ("/health", "/metrics"):
        assert client.get(f"/experts/general/abc{path}").text == "reached"
