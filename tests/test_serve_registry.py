"""What the edge makes of the registry: experts that come and go, keys, prompted experts, routers, decisions shown."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import openai
import pytest
from collegium.experts.card import parse_card
from collegium.experts.registry import KeyScope, Registry, RegistryError, RouterRecord, SkillRecord, State
from collegium.experts.state import engine_key
from collegium.router.decision import Policy
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Sources
from collegium.serve.watcher import Watcher
from echo_expert import EchoExpert
from serve_kit import KeywordRouter, Running, card, running, specialist


def wait_for(edge: Running, name: str, there: bool = True) -> None:
    while (name in {model["id"] for model in edge.get("/v1/models").json()["data"]}) != there:
        time.sleep(0.02)


def test_experts_appear_and_go_while_the_edge_serves(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.add(specialist("chess", edge.echo.url, "general", default_skill=0.95))
        wait_for(edge, "chess")
        assert edge.chat("hello").json()["model"] == "chess"
        edge.pool.registry.remove("chess")
        wait_for(edge, "chess", there=False)
        assert edge.chat("hello").json()["model"] == "general"
        assert edge.chat("hello", model="chess").status_code == 404


def test_a_registered_expert_that_is_not_ready_is_loading(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.add(card("asleep", edge.echo.url))
        while (answer := edge.chat("hi", model="asleep")).status_code == 404:
            time.sleep(0.02)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "expert_loading")
        assert answer.headers["retry-after"] == "5" and answer.headers["x-should-retry"] == "true"


def test_readiness_follows_the_experts(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        assert edge.get("/readyz").status_code == 200
        for name in ("general", "math", "coding"):
            edge.pool.registry.observe(name, State.FAILED, "down")
        while edge.get("/readyz").status_code == 200:
            time.sleep(0.02)
        answer = edge.chat("hello")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_healthy_expert")
        assert edge.get("/healthz").status_code == 200


def test_keys_close_the_endpoint_and_limit_the_choice(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.add_key("all", "sk-all")
        edge.pool.registry.add_key("some", "sk-some", KeyScope(frozenset({"general", "coding"})))
        while edge.chat("hello").status_code == 200:
            time.sleep(0.02)
        with pytest.raises(openai.AuthenticationError):
            edge.client("wrong").models.list()
        answer = edge.get("/v1/models")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert edge.get("/healthz").status_code == 200
        some = edge.client("sk-some")
        assert [model.id for model in some.models.list()] == ["auto", "coding", "general"]
        asked = {"messages": [{"role": "user", "content": "sum of primes"}]}
        assert some.chat.completions.create(model="auto", **asked).model == "general"  # type: ignore[call-overload]
        assert edge.client("sk-all").chat.completions.create(model="auto", **asked).model == "math"  # type: ignore[call-overload]
        with pytest.raises(openai.PermissionDeniedError):
            some.chat.completions.create(model="math", **asked)  # type: ignore[call-overload]
        body = {"model": "auto", "max_tokens": 5, **asked}
        assert edge.post("/v1/messages", json=body, headers={"x-api-key": "sk-all"}).status_code == 200
        twice = [("authorization", "Bearer sk-all"), ("authorization", "Bearer sk-all")]
        assert edge.get("/v1/models", headers=twice).status_code == 401
        assert edge.get("/v1/models", headers={"authorization": "Basic sk-all"}).status_code == 401
        assert "authorization" not in edge.echo.last.headers


def test_prompted_experts_borrow_url_model_and_key(tmp_path: Path) -> None:
    key = engine_key("internal", "base")
    with running(tmp_path) as edge, EchoExpert(key=key) as engine:
        backend = {"kind": "engine", "model": "m", "memory_gb": 1}
        registry = edge.pool.registry
        registry.add(parse_card({"name": "base", "backend": backend}))
        registry.observe("base", State.READY, base_url=engine.url)
        sampling = {"temperature": 0.1, "max_tokens": 7, "stop": ["x"], "presence_penalty": 1}
        prompted = {"kind": "prompted", "engine": "base", "system_prompt": "Be brief.", "sampling": sampling}
        registry.add(parse_card({"name": "brief", "backend": prompted}))
        wait_for(edge, "brief")

        answer = edge.chat("hi", model="brief", max_completion_tokens=3)
        assert answer.json()["model"] == "brief"
        sent = engine.last.body
        assert sent["model"] == "base"
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        assert sent["temperature"] == 0.1 and "max_tokens" not in sent

        own = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "hi"}]
        body = {"model": "brief", "messages": own, "temperature": 1}
        edge.post("/v1/chat/completions", json=body)
        assert engine.last.body["messages"] == [{"role": "system", "content": "Be brief.\n\nRhyme."}, own[1]]
        assert (engine.last.body["temperature"], engine.last.body["max_tokens"]) == (1, 7)

        edge.post("/v1/responses", json={"model": "brief", "input": "hi", "instructions": "Rhyme."})
        assert engine.last.body["instructions"] == "Be brief.\n\nRhyme."
        assert engine.last.body["max_output_tokens"] == 7 and "stop" not in engine.last.body

        blocks = [{"type": "text", "text": "Rhyme."}]
        messages = {"model": "brief", "max_tokens": 5, "system": blocks, "messages": own[1:]}
        edge.post("/v1/messages", json=messages)
        assert engine.last.body["system"] == [{"type": "text", "text": "Be brief."}, *blocks]
        assert (engine.last.body["max_tokens"], engine.last.body["stop_sequences"]) == (5, ["x"])
        assert engine.last.headers["x-api-key"] == key

        edge.post("/v1/completions", json={"model": "brief", "prompt": "hi"})
        assert engine.last.body["prompt"] == "hi" and engine.last.body["presence_penalty"] == 1


def test_remote_keys_come_from_the_named_variable(tmp_path: Path) -> None:
    with running(tmp_path, environment={"THEIR_KEY": "sk-theirs"}) as edge, EchoExpert(key="sk-theirs") as remote:
        backend = {"kind": "remote", "url": remote.url, "model": "big", "api_key_env": "THEIR_KEY"}
        edge.pool.add(parse_card({"name": "remote", "backend": backend}))
        wait_for(edge, "remote")
        assert edge.chat("hi", model="remote").status_code == 200
        assert remote.last.headers["authorization"] == "Bearer sk-theirs"


def test_route_shows_the_whole_decision(tmp_path: Path) -> None:
    with running(tmp_path, EdgeSettings(policy=Policy(cost_weight=0.01))) as edge:
        before = len(edge.echo.received)
        shown = edge.post("/v1/route", json={"text": "sum of primes"}).json()
        same = edge.post("/v1/route", json={"messages": [{"role": "user", "content": "sum of primes"}]}).json()
        assert shown == same
        assert (shown["expert"], shown["runner_up"], shown["router"]) == ("math", "general", "keywords-1")
        assert shown["posterior"]["math"] == pytest.approx(4.1 / 4.3)
        assert shown["confidence"] == shown["posterior"]["math"]
        scores = {score["expert"]: score for score in shown["experts"]}
        assert scores["math"]["utility"] == pytest.approx(scores["math"]["quality"] - 0.01)
        assert scores["coding"]["excluded"] == "not admitted to math"
        assert scores["general"]["excluded"] is None
        named = edge.post("/v1/route", json={"text": "x", "model": "coding"}).json()
        assert (named["expert"], named["posterior"], named["reason"]) == ("coding", None, "asked for by name")
        assert len(edge.echo.received) == before


def test_measured_skill_opens_a_domain(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        assert edge.chat("thanks").json()["model"] == "general"
        edge.pool.registry.set_skills("coding", [SkillRecord("coding", "general", 90, 100, admitted=True)])
        while edge.post("/v1/route", json={"text": "thanks"}).json()["expert"] != "coding":
            time.sleep(0.02)


def test_a_window_that_is_too_small_is_passed_over(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.replace(specialist("math", edge.echo.url, "math", limits={"context_window": 100}))
        long = "sum " * 200
        while edge.chat(long).json()["model"] != "general":
            time.sleep(0.02)
        assert edge.chat("sum").json()["model"] == "math"


def test_the_last_snapshot_stands_when_the_registry_fails(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        with sqlite3.connect(tmp_path / "registry.db") as database:
            database.execute("DROP TABLE meta")
        with pytest.raises(RegistryError):
            edge.pool.registry.version()
        time.sleep(0.6)  # two looks at the registry
        assert edge.chat("sum of primes").json()["model"] == "math"


def test_promoted_routers_take_over_and_bad_ones_do_not(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")

    def load(path: str) -> KeywordRouter:
        if "bad" in path:
            raise ValueError("head.safetensors has a changed byte")
        return KeywordRouter(version=path)

    watcher = Watcher(registry, Sources("internal", {}), KeywordRouter(), load)
    watcher.start()
    try:
        for path, wanted in (("second", "second"), ("bad", "second"), ("third", "third")):
            registry.promote(RouterRecord(path, path))
            card_name = f"seen-{path}"
            registry.add(card(card_name, "http://127.0.0.1:9/v1"))  # marks the snapshot that read the promotion
            while card_name not in watcher.snapshot.known:
                time.sleep(0.01)
            assert watcher.snapshot.router.version == wanted
        registry.rollback()
        registry.rollback()
        while watcher.snapshot.router.version != "second":
            time.sleep(0.01)
    finally:
        watcher.stop()
        registry.close()
