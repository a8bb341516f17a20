"""Odd requests, moved experts and scarce means at a whole edge: rows of the fault catalogue with no better place."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from collegium.experts.card import parse_card
from collegium.experts.registry import KeyScope, Registry, RegistryError, RouterRecord, SkillRecord, State
from collegium.router.decision import Policy
from collegium.router.posterior import Posterior
from collegium.serve.admin import create_admin_app
from collegium.serve.answer import Exchange
from collegium.serve.classify import Classifier
from collegium.serve.metrics import Metrics
from collegium.serve.settings import EdgeSettings
from echo_expert import EchoExpert, served
from serve_kit import KeywordRouter, Pool, Running, card, raw_answer, running


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("edge"))) as started:
        yield started


@pytest.mark.parametrize(
    "line",
    [
        b"TRACE /v1/models", b"PUT /v1/chat/completions", b"OPTIONS *", b"GET http://other/admin/experts",
        b"GET /v1/%2e%2e/admin/experts", b"GET /v1/models/../../admin/experts", b"CONNECT other:443",
    ],
)  # fmt: skip
def test_a27_odd_targets_lead_to_no_other_way(edge: Running, line: bytes) -> None:
    answer = raw_answer(edge.port, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1] in (b"400", b"404", b"405")
    assert b'"type":"invalid_request_error"' in answer


def test_a16_grammars_go_only_to_experts_that_offer_them(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.replace(card("general", edge.echo.url, generalist=True, capabilities=[]))
        while edge.chat("hello", tools=[{"type": "function"}]).status_code == 200:
            time.sleep(0.02)
        for field in ("structured_outputs", "guided_regex", "guided_grammar"):
            assert "choices" not in edge.chat("hello", **{field: "(a+)+$"}).json()
            refused = edge.chat("hello", "general", **{field: "(a+)+$"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_parameter")
            assert edge.chat("sum of primes", **{field: "(a+)+$"}).json()["model"] == "math"
        assert sum("guided_regex" in received.body for received in edge.echo.received) == 1


def test_e06_a_router_that_gives_no_probabilities_leaves_the_prompt_to_the_generalist(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(KeywordRouter):
        def posterior(self, text: str) -> Posterior:
            return Posterior(("math", "general"), (float("nan"), float("inf")), 0.5)

    with running(tmp_path, router=Broken()) as edge:
        answer = edge.chat("sum of primes")
        assert answer.json()["model"] == "general"
        assert "classifier_error" in answer.headers["x-collegium-reason"]


def test_b02_e04_who_leaves_the_classifiers_queue_takes_the_work_along() -> None:
    go_on, read = threading.Event(), []

    @dataclass(frozen=True)
    class Waiting(KeywordRouter):
        def posterior(self, text: str) -> Posterior:
            go_on.wait(20)
            read.append(text)
            return super().posterior(text)

    async def main() -> None:
        classifier = Classifier(threads=1, queue=3, budget=20)
        asked = [asyncio.create_task(classifier.posterior(Waiting(), text)) for text in ("sum", "left", "python")]
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.wait({asked[1]})
        go_on.set()
        found = await asyncio.gather(asked[0], asked[2])
        assert [one.domain for one in found if isinstance(one, Posterior)] == ["math", "coding"]
        again = await asyncio.gather(*(classifier.posterior(Waiting(), "sum") for _ in range(4)))
        assert all(isinstance(one, Posterior) for one in again)  # its place in the queue is free
        classifier.close()

    asyncio.run(main())
    assert read == ["sum", "python", *["sum"] * 4]


def test_a20_a_prompt_without_words_goes_to_the_generalist(edge: Running) -> None:
    for text in ("", "  \n", "\u200b\ufeff"):
        answer = edge.chat(text)
        assert (answer.status_code, answer.json()["model"]) == (200, "general")
        assert answer.headers["x-collegium-reason"].startswith("low_confidence")


@pytest.mark.parametrize(("margin", "told"), [(0.0, "beta"), (0.05, "beta"), (0.2, "alpha")])
def test_e12_a_conversation_stays_unless_another_leads_by_more_than_the_margin(
    tmp_path: Path, margin: float, told: str
) -> None:
    turns = [f"Please explain to me {what}" for what in ("a sum of primes", "a python function", "a bug in python")]
    with running(tmp_path, EdgeSettings(policy=Policy(switch_margin=margin))) as edge:
        for name, domains in (("alpha", {"math": 0.95, "coding": 0.85}), ("beta", {"math": 0.85, "coding": 0.95})):
            edge.pool.add(card(name, edge.echo.url, domains=domains, admitted=[*domains]))
        while len(edge.get("/v1/models").json()["data"]) < 6:
            time.sleep(0.02)
        said = [{"role": "user", "content": turn} for turn in turns]
        for length, wanted in ((1, "alpha"), (2, told), (3, told)):
            answer = edge.post("/v1/chat/completions", json={"model": "auto", "messages": said[:length]})
            assert answer.json()["model"] == wanted
        assert ("had the turn before" in answer.headers["x-collegium-reason"]) == (told == "alpha")
        alone = edge.post("/v1/chat/completions", json={"model": "auto", "messages": said[1:]})
        assert alone.json()["model"] == "beta"
        Registry(f"sqlite:///{tmp_path / 'registry.db'}").remove("alpha")
        while len(edge.get("/v1/models").json()["data"]) > 5:
            time.sleep(0.02)
        gone = edge.post("/v1/chat/completions", json={"model": "auto", "messages": said})
        assert gone.json()["model"] == "beta"


def test_e12_a_turn_that_nobody_may_answer_is_where_the_conversation_begins(tmp_path: Path) -> None:
    with running(tmp_path, EdgeSettings(policy=Policy(switch_margin=0.2))) as edge:
        for name, domains in (("alpha", {"math": 0.95, "coding": 0.85}), ("beta", {"math": 0.85, "coding": 0.95})):
            edge.pool.add(card(name, edge.echo.url, domains=domains, admitted=[*domains]))
        edge.pool.registry.add_key("narrow", "secret", KeyScope(experts=frozenset({"alpha", "beta"})))
        said = [
            {"role": "user", "content": turn} for turn in ("hello", "a prime sum", "a bug: compile a python function")
        ]
        headers = {"authorization": "Bearer secret"}
        while edge.post("/v1/chat/completions", json={"model": "alpha", "messages": said}).status_code != 401:
            time.sleep(0.02)
        for length, expected in ((1, 503), (2, 200), (3, 200)):
            body = {"model": "auto", "messages": said[:length]}
            answer = edge.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == expected
        assert answer.json()["model"] == "alpha" and "had the turn before" in answer.headers["x-collegium-reason"]


def test_e12_earlier_turns_are_read_within_one_budget_for_all_of_them(tmp_path: Path) -> None:
    read: list[str] = []

    class Slow(KeywordRouter):
        def posterior(self, text: str) -> Posterior:
            read.append(text)
            time.sleep(1.0)
            return super().posterior(text)

    settings = EdgeSettings(policy=Policy(switch_margin=0.9), classifier_budget=3)
    with running(tmp_path, settings, Slow()) as edge:
        said = [{"role": "user", "content": f"the sum of {number} primes"} for number in range(8)]
        answer = edge.post("/v1/chat/completions", json={"model": "auto", "messages": said})
        assert answer.headers["x-collegium-expert"] == "math"
        assert len(read) <= 5  # the last, three within the budget, and one that was begun and is not waited for


def test_f08_no_request_takes_one_experts_key_to_anothers_url(tmp_path: Path) -> None:
    keys = {"KEY_A": "sk-a", "KEY_B": "sk-b"}
    with running(tmp_path, environment=keys) as edge, EchoExpert("sk-a") as first, EchoExpert("sk-b") as second:
        sides = [
            parse_card(
                {"name": "moving", "backend": {"kind": "remote", "url": url, "model": "echo", "api_key_env": name}}
            )
            for url, name in ((first.url, "KEY_A"), (second.url, "KEY_B"))
        ]
        edge.pool.add(sides[0])
        while edge.chat("hello", "moving").status_code != 200:
            time.sleep(0.02)
        over = threading.Event()

        def ask(number: int) -> set[int]:
            statuses = set()
            while not over.is_set():
                statuses.add(edge.chat(f"hello {number}", "moving").status_code)
            return statuses

        with ThreadPoolExecutor(3) as threads:
            asking = [threads.submit(ask, number) for number in range(3)]
            for turn in range(1, 5):
                seen = len((first, second)[turn % 2].received)
                edge.pool.registry.replace(sides[turn % 2])
                while len((first, second)[turn % 2].received) <= seen:
                    time.sleep(0.02)
            over.set()
            # It is asked where it was until the new address has been observed; an answer there is one all the same.
            assert set().union(*(one.result() for one in asking)) <= {200}
        assert {one.headers["authorization"] for one in first.received} == {"Bearer sk-a"}
        assert {one.headers["authorization"] for one in second.received} == {"Bearer sk-b"}


@contextmanager
def no_file_grows(beyond: int) -> Iterator[None]:
    """A disk that is full: no file of this process may get larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_f02_on_a_full_disk_registering_is_refused_and_serving_goes_on(tmp_path: Path) -> None:
    body = {"name": "new", "backend": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}}
    with (
        running(tmp_path) as edge,
        served(create_admin_app(edge.pool.registry, "admin-key", lambda card, existing: None)) as url,
        httpx2.Client(base_url=url, trust_env=False, headers={"authorization": "Bearer admin-key"}) as admin,
    ):
        with no_file_grows((tmp_path / "registry.db-wal").stat().st_size):
            refused = admin.post("/admin/experts", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
            assert refused.headers["retry-after"] == "5"
            assert edge.chat("sum of primes").json()["model"] == "math"
        assert "new" not in {record.name for record in edge.pool.registry.experts()}
        assert admin.post("/admin/experts", json=body).status_code == 201


@pytest.mark.parametrize("harm", ["garbage", "cut"])
def test_f03_a_damaged_registry_is_refused(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "registry.db"
    registry = Registry(f"sqlite:///{file}")
    registry.add(card("one", "http://127.0.0.1:9/v1"))
    registry.close()
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole) if harm == "garbage" else whole[: len(whole) // 2])
    with pytest.raises(RegistryError, match="registry cannot be"):
        Registry(f"sqlite:///{file}").experts()


def test_f03_an_empty_registry_is_not_begun_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "registry.db").touch()
    with caplog.at_level(logging.WARNING):
        Registry(f"sqlite:///{tmp_path / 'registry.db'}").close()
    assert "empty file" in caplog.text


def test_f19_a_copy_made_while_the_registry_is_written_is_whole_and_holds_no_secret(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for name in ("one", "two"):
        registry.add(card(name, "http://127.0.0.1:9/v1"))
        registry.observe(name, State.READY, base_url="http://127.0.0.1:9/v1")
    registry.set_skills("one", [SkillRecord("one", "math", 9, 10, admitted=True)])
    registry.add_key("team", "sk-the-secret", KeyScope(requests_per_minute=5))
    registry.promote(RouterRecord("v1", "/routers/v1"))
    copy = tmp_path / "copy.db"
    with sqlite3.connect(tmp_path / "registry.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    registry.remove("two")
    restored = Registry(f"sqlite:///{copy}")
    assert [record.name for record in restored.experts()] == ["one", "two"]
    assert not any(record.removed for record in restored.experts())
    assert restored.expert("one") == registry.expert("one")
    assert (restored.skills(), restored.keys()) == (registry.skills(), registry.keys())
    assert restored.active_router() == "/routers/v1"
    assert b"sk-the-secret" not in copy.read_bytes()
    restored.close()
    registry.close()


def test_g04_an_expert_that_is_full_holds_up_nobody_elses_requests(tmp_path: Path) -> None:
    settings = EdgeSettings(first_byte=20, between_events=20, total=30, queue=1)
    stalled = {"model": "narrow", "stream": True, "messages": [{"role": "user", "content": "!stall 12345"}]}
    with running(tmp_path, settings) as edge:
        edge.pool.add(card("narrow", edge.echo.url.replace("127.0.0.1", "localhost"), limits={"concurrency": 1}))
        while edge.chat("hello", "narrow").status_code == 404:
            time.sleep(0.02)
        with edge.http.stream("POST", f"{edge.url}/v1/chat/completions", json=stalled) as held:
            next(held.iter_raw())
            assert [edge.chat(text).status_code for text in ("hello", "sum", "python")] == [200] * 3


def test_g07_requests_leave_no_memory_behind(edge: Running) -> None:
    text = "word " * 40_000

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        sizes = []
        for _ in range(3):
            for _ in range(5):
                assert edge.chat(text).status_code == 200
                edge.echo.received.clear()
            sizes.append(held())
    finally:
        tracemalloc.stop()
    assert sizes[2] - sizes[1] < len(text)  # 5 requests, of which not even one prompt stays


def test_g09_what_clients_make_up_makes_no_new_series(edge: Running) -> None:
    def series() -> set[str]:
        lines = edge.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    def nonsense(number: int) -> None:
        edge.chat("hello", f"no-model-{number}")
        edge.post(f"/nowhere/{number}", json={})
        edge.http.request(f"METHOD{number}", f"{edge.url}/v1/models")
        edge.get(f"/v1/models/none-{number}")

    nonsense(-1)
    series()
    time.sleep(0.5)  # metrics are kept for a moment
    before = series()
    for number in range(6):
        nonsense(number)
    time.sleep(0.5)
    assert series() == before


def test_g11_scrapes_in_a_storm_get_the_same_text() -> None:
    metrics = Metrics()
    first = metrics.render()
    metrics.begun(Exchange("req_1", "models"))
    assert metrics.render() is first
    while metrics.render() is first:
        time.sleep(0.001)
    assert b"collegium_requests_accepted_total 1.0" in metrics.render()


def test_g11_what_needs_no_key_tells_nothing(edge: Running) -> None:
    assert edge.get("/healthz").json() == {"status": "ok"}
    assert edge.get("/readyz").json() == {"status": "ready"}


def test_h04_counts_that_an_expert_left_out_are_not_made_up(edge: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "collegium.access"):
        answer = edge.chat("hello", stream=True)
        assert answer.text.endswith("data: [DONE]\n\n") and "usage" not in answer.text
        while not (lines := [one.__dict__["fields"] for one in caplog.records if one.name == "collegium.access"]):
            time.sleep(0.01)
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (None, None)


@contextmanager
def edge_with_files(folder: Path, files: int, echo: EchoExpert) -> Iterator[int]:
    """The real edge process, which may have so many files open; yields its port."""
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    Pool(registry).add(card("general", echo.url, generalist=True))
    registry.close()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(500)
        process = subprocess.Popen(
            ["prlimit", f"--nofile={files}:{files}", sys.executable, "-m", "collegium.serve.edge",
             "--state", str(folder), "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()], env={**os.environ, "COLLEGIUM_ALLOW_NETWORKS": "127.0.0.1"},
        )  # fmt: skip
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            assert process.wait(60) == 0


def test_b10_g06_more_connections_than_files_are_refused_and_the_rest_is_served(tmp_path: Path) -> None:
    with (
        EchoExpert() as echo,
        edge_with_files(tmp_path, 200, echo) as port,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as early,
        ExitStack() as idle,
    ):
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        assert early.post("/v1/chat/completions", json=body).status_code == 200
        connections = [idle.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(300)]
        assert connections[-1].recv(1000).startswith(b"HTTP/1.1 503 ")
        assert [early.post("/v1/chat/completions", json=body).status_code for _ in range(5)] == [200] * 5
        idle.close()
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as late:
            while late.get("/healthz").status_code != 200:
                time.sleep(0.05)
            assert late.post("/v1/chat/completions", json=body).status_code == 200
