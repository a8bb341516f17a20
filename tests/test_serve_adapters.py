"""Adapters at the edge: experts like any other; what loads adapters is out of a client's reach."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from collegium.experts.card import parse_card
from collegium.experts.registry import State
from collegium.experts.state import engine_key
from collegium.serve.snapshot import Builder, Sources
from echo_expert import EchoExpert
from serve_kit import KeywordRouter, Running, running

ENGINE = {"kind": "engine", "model": "m", "memory_gb": 1, "adapters": {"max": 2}, "max_model_len": 64}


def register(edge: Running, engine: EchoExpert) -> None:
    """An engine and an adapter on it, loaded under the name `lora-12ab`; the prompted expert borrows the adapter."""
    registry = edge.pool.registry
    adapter = {"kind": "adapter", "engine": "base", "adapter": "lab/adapter"}
    prompted = {"kind": "prompted", "engine": "lora", "system_prompt": "Be brief."}
    registry.add(parse_card({"name": "base", "backend": ENGINE, "capabilities": ["vision"]}))
    registry.add(parse_card({"name": "lora", "backend": adapter, "domains": {"math": 0.99}, "admitted": ["math"]}))
    registry.add(parse_card({"name": "brief", "backend": prompted}))
    registry.observe("base", State.READY, base_url=engine.url)
    registry.observe("lora", State.READY, base_url=f"{engine.url}#lora-12ab")
    registry.observe("brief", State.READY, base_url=f"{engine.url}#lora-12ab")


def models(edge: Running) -> set[str]:
    return {model["id"] for model in edge.get("/v1/models").json()["data"]}


def until_listed(edge: Running, name: str, there: bool = True) -> None:
    deadline = time.monotonic() + 30
    while (name in models(edge)) != there:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_adapter_is_asked_by_its_name_there_with_its_engines_key(tmp_path: Path) -> None:
    key = engine_key("internal", "base")
    with running(tmp_path) as edge, EchoExpert(key=key) as engine:
        register(edge, engine)
        until_listed(edge, "brief")
        answer = edge.chat("sum of primes")
        assert answer.headers["x-collegium-expert"] == answer.json()["model"] == "lora"
        assert engine.last.body["model"] == "lora-12ab"
        assert engine.last.headers["authorization"] == f"Bearer {key}"
        assert edge.chat("hi", model="brief").json()["model"] == "brief"
        assert engine.last.body["model"] == "lora-12ab" and "Be brief." in str(engine.last.body)


def test_its_window_and_capabilities_are_its_engines(tmp_path: Path) -> None:
    with running(tmp_path) as edge, EchoExpert() as engine:
        register(edge, engine)
        sources = Sources("internal", {})
        snapshot = Builder(sources).build(edge.pool.registry.experts(), [], [], KeywordRouter())
    for name in ("lora", "brief"):
        candidate = snapshot.known.get(name)
        assert candidate is not None and candidate.context_window == 64 and "vision" in candidate.capabilities


def test_an_adapter_that_is_not_loaded_is_not_asked(tmp_path: Path) -> None:
    with running(tmp_path) as edge, EchoExpert() as engine:
        register(edge, engine)
        until_listed(edge, "lora")
        edge.pool.registry.observe("lora", State.READY, base_url=engine.url)
        until_listed(edge, "lora", there=False)
        assert edge.chat("hi", model="lora").status_code == 503 and not engine.received


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/lora", "/invocations"]
)
def test_clients_load_no_adapters(tmp_path: Path, path: str) -> None:
    body = {"lora_name": "mine", "lora_path": "/tmp/mine", "name": "mine", "src": "/tmp/mine", "model": "general"}
    with running(tmp_path) as edge:
        for method in ("POST", "DELETE"):
            assert edge.http.request(method, edge.url + path, json=body).status_code in (404, 405)
        assert not edge.echo.received


def test_a_model_that_is_no_experts_name_is_not_passed_on(tmp_path: Path) -> None:
    """An engine would look for an adapter of that name in its staging folder."""
    with running(tmp_path) as edge, EchoExpert() as engine:
        register(edge, engine)
        until_listed(edge, "lora")
        for name in ("lora-12ab", "../lora", "base/../lora-12ab"):
            assert edge.chat("hi", model=name).status_code == 404
        assert not engine.received and not edge.echo.received
