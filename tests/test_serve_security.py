"""What must not get out or in: other tenants' prefix caches, the own network, output limits of a card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.experts.card import CardError, parse_card
from collegium.experts.networks import Networks
from collegium.experts.registry import KeyScope, State
from collegium.experts.state import engine_key
from collegium.serve.settings import EdgeSettings
from echo_expert import EchoExpert
from serve_kit import Running, card, running
from test_experts_networks import canary

SETTINGS = EdgeSettings(first_byte=5, between_events=5, total=20)
THIEF = {"kind": "remote", "url": "https://a.example/v1", "model": "m"}
HELLO = [{"role": "user", "content": "hello"}]


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


def test_each_key_has_a_prefix_cache_of_its_own_on_our_engines_only(tmp_path: Path) -> None:
    with running(tmp_path) as edge, EchoExpert(key=engine_key("internal", "base")) as engine:
        registry = edge.pool.registry
        registry.add(parse_card({"name": "base", "backend": {"kind": "engine", "model": "m", "memory_gb": 1}}))
        registry.observe("base", State.READY, base_url=engine.url)
        for name in ("a", "b"):
            registry.add_key(name, f"sk-{name}", KeyScope())
        while edge.get("/v1/models/base", headers=bearer("b")).status_code != 200:
            time.sleep(0.02)

        def salt(key: str, model: str = "base", **more: object) -> object:
            body = {"model": model, "messages": HELLO, **more}
            assert edge.post("/v1/chat/completions", json=body, headers=bearer(key)).status_code == 200
            seen = engine if model == "base" else edge.echo
            return seen.last.body.get("cache_salt")

        first = salt("a")
        assert isinstance(first, str) and len(first) == 64
        assert salt("a") == first != salt("b")
        own = salt("a", cache_salt="mine")
        assert own not in (first, "mine", salt("b", cache_salt="mine"))
        assert salt("b", cache_salt=first) != first
        assert salt("a", model="general", cache_salt="mine") is None
        registry.rotate_key("a", "sk-c")
        while edge.get("/v1/models", headers=bearer("c")).status_code != 200:
            time.sleep(0.02)
        assert salt("c") == first


@pytest.mark.parametrize(
    ("path", "sent", "forwarded"),
    [
        ("chat/completions", {}, {"max_tokens": 100}),
        ("chat/completions", {"max_tokens": 7}, {"max_tokens": 7}),
        ("chat/completions", {"max_tokens": 7000}, {"max_tokens": 100}),
        ("chat/completions", {"max_completion_tokens": 7000}, {"max_completion_tokens": 100}),
        ("responses", {"max_output_tokens": 7000}, {"max_output_tokens": 100}),
        ("responses", {}, {"max_output_tokens": 100}),
        ("completions", {}, {"max_tokens": None}),
        ("completions", {"max_tokens": 7000}, {"max_tokens": 100}),
        ("messages", {"max_tokens": 7000}, {"max_tokens": 100}),
    ],
)
def test_a_cards_output_limit_bounds_every_answer(
    edge: Running, path: str, sent: dict[str, object], forwarded: dict[str, object]
) -> None:
    text = {"responses": "input", "completions": "prompt"}.get(path)
    body = {"model": "brief", **({text: "hello"} if text else {"messages": HELLO}), **sent}
    assert edge.post(f"/v1/{path}", json=body).status_code == 200
    seen = edge.echo.last.body
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    assert {name: seen.get(name) for name in names if name in seen} == {
        name: limit for name, limit in forwarded.items() if limit is not None
    }


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("edge"))) as started:
        started.pool.add(card("brief", started.echo.url, limits={"max_output_tokens": 100}))
        while started.get("/v1/models/brief").status_code != 200:
            time.sleep(0.02)
        yield started


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_the_edge_connects_remote_experts_to_public_addresses_only(tmp_path: Path, host: str) -> None:
    with canary() as (port, heard), running(tmp_path, replace(SETTINGS, networks=Networks())) as edge:
        edge.pool.add(card("inside", f"http://{host}:{port}/v1"))
        while (answer := edge.chat("hello", model="inside")).status_code == 404:
            time.sleep(0.02)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_connection_failed")
        assert edge.chat("hello", model="general").status_code == 502
        assert heard == [] and edge.echo.received == []


def test_what_is_allowed_is_asked_and_our_own_engines_always_are(tmp_path: Path) -> None:
    with running(tmp_path, replace(SETTINGS, networks=Networks.parse(["127.0.0.1"]))) as edge:
        assert edge.chat("hello", model="general").status_code == 200
    (tmp_path / "own").mkdir()
    with (
        running(tmp_path / "own", replace(SETTINGS, networks=Networks())) as edge,
        EchoExpert(key=engine_key("internal", "base")) as engine,
    ):
        registry = edge.pool.registry
        registry.add(parse_card({"name": "base", "backend": {"kind": "engine", "model": "m", "memory_gb": 1}}))
        registry.observe("base", State.READY, base_url=engine.url)
        while edge.chat("hello", model="base").status_code == 404:
            time.sleep(0.02)
        assert edge.chat("hello", model="base").status_code == 200


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        assert edge.chat("!redirect", model="general").status_code == 502


@pytest.mark.parametrize("name", ["COLLEGIUM_INTERNAL_KEY", "collegium_admin_key", "RAY_AUTH_TOKEN", "VLLM_API_KEY"])
def test_a_card_cannot_have_our_own_secrets_sent_to_its_url(name: str) -> None:
    with pytest.raises(CardError, match="collegium's own variables"):
        parse_card({"name": "thief", "backend": {**THIEF, "api_key_env": name}})
    assert parse_card({"name": "fine", "backend": {**THIEF, "api_key_env": "THEIR_KEY"}})


def test_tokens_and_refusals_are_counted(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.chat("hello", model="general")
        edge.chat("hello", model="nobody")
        told = edge.get("/metrics").text
    assert 'collegium_tokens_total{expert="general",kind="prompt"} 3.0' in told
    assert 'collegium_refused_total{code="model_not_found"} 1.0' in told
