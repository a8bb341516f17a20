"""Experts that fail, clients that leave, classifiers that hang: what the edge makes of it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from collegium.router.posterior import Posterior
from collegium.serve.settings import EdgeSettings
from serve_kit import Running, card, running, specialist

QUICK = EdgeSettings(
    first_byte=2, between_events=1, total=10, classifier_budget=1, classifier_queue=1, breaker_failures=1000
)


@dataclass(frozen=True)
class MoodyRouter:
    """Hangs or fails when the prompt says so."""

    version: str = "moody-1"

    def posterior(self, text: str) -> Posterior:
        if "hang" in text:
            time.sleep(2.5)
        if "fail" in text:
            raise ArithmeticError(text)
        return Posterior(("math", "general"), (0.9, 0.1), 0.5)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("edge")), QUICK, MoodyRouter()) as started:
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        started.pool.add(card("dead", f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))
        appears(started, "dead")
        yield started
        closed.close()


def appears(edge: Running, name: str) -> None:
    """Wait until the edge knows an expert; the test's own limit ends the wait."""
    while name not in {model["id"] for model in edge.get("/v1/models").json()["data"]}:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "status", "code", "retry_after"),
    [
        ("status 429 2", 429, "rate_limit_exceeded", "2"),
        ("status 429 99999", 429, "rate_limit_exceeded", "120"),
        ("status 429 soon", 429, "rate_limit_exceeded", "1"),
        ("status 500", 502, "upstream_invalid_response", None),
        ("status 503", 503, "server_is_overloaded", "1"),
        ("status 401", 502, "upstream_invalid_response", None),
        ("status 404", 502, "upstream_invalid_response", None),
        ("status 408", 504, "total_timeout", None),
        ("status 413", 413, "request_too_large", None),
        ("redirect", 502, "upstream_invalid_response", None),
        ("html", 502, "upstream_invalid_response", None),
        ("empty", 502, "upstream_invalid_response", None),
        ("shape", 502, "upstream_invalid_response", None),
        ("gzip", 502, "upstream_invalid_response", None),
        ("context", 400, "context_length_exceeded", None),
    ],
)
def test_upstream_failures_are_translated(
    edge: Running, fault: str, status: int, code: str, retry_after: str | None
) -> None:
    answer = edge.chat(f"!{fault}", model="general")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["x-should-retry"] == ("true" if retry_after else "false")
    assert "10.0.0.1" not in answer.text and "secret" not in answer.text


@pytest.mark.parametrize(("fault", "status"), [("first", 502), ("html", 502), ("status 503", 503), ("big", 502)])
def test_a_stream_that_fails_before_its_first_event_has_a_status(edge: Running, fault: str, status: int) -> None:
    answer = edge.chat(f"!{fault}", model="general", stream=True)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("cut", "upstream_stream_truncated"),
        ("silent", "upstream_stream_truncated"),
        ("midway", "upstream_invalid_response"),
        ("stall", "total_timeout"),
    ],
)
def test_a_stream_that_fails_under_way_ends_with_an_error_event(edge: Running, fault: str, code: str) -> None:
    answer = edge.chat(f"!{fault} text", model="general", stream=True)
    events = answer.text.rstrip("\n").split("\n\n")
    assert answer.status_code == 200 or fault == "midway"
    last = answer.json() if answer.status_code == 502 else json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["code"] == code
    assert "[DONE]" not in answer.text and "10.0.0.1" not in answer.text


@pytest.mark.parametrize("fault", ["nomark", "garbage"])
def test_a_stream_that_only_stumbles_is_whole(edge: Running, fault: str) -> None:
    answer = edge.chat(f"!{fault}", model="general", stream=True)
    events = answer.text.rstrip("\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(piece.get("content", "") for piece in pieces) == f"!{fault}"


def test_no_first_byte_in_time(edge: Running) -> None:
    answer = edge.chat("!hang", model="general", stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "ttft_timeout")
    assert edge.echo.left.wait(60)


@pytest.mark.parametrize("stream", [True, False])
def test_the_expert_learns_that_the_client_left(tmp_path: Path, stream: bool) -> None:
    patient = EdgeSettings(first_byte=60, between_events=60, total=60)
    with running(tmp_path, patient) as edge:
        text = "!stall long" if stream else "!hang"
        body = {"model": "general", "stream": stream, "messages": [{"role": "user", "content": text}]}
        raw = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(raw)}"
        with socket.create_connection(("127.0.0.1", edge.port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + raw)
            if stream:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
            while not edge.echo.received:
                time.sleep(0.01)
        assert edge.echo.left.wait(60)
        while 'end="client_cancelled"' not in edge.get("/metrics").text:
            time.sleep(0.02)
        assert "collegium_requests_in_flight 1.0" in edge.get("/metrics").text  # this very request


def test_an_unreachable_expert_by_name_is_a_502(edge: Running) -> None:
    answer = edge.chat("hi", model="dead")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_connection_failed")
    assert answer.headers["x-should-retry"] == "true"


def test_an_unreachable_specialist_leaves_its_prompt_to_the_generalist(tmp_path: Path) -> None:
    with running(tmp_path) as edge, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        edge.pool.add(specialist("better", url, "math", default_skill=0.9))
        edge.pool.registry.remove("math")
        appears(edge, "better")
        answer = edge.chat("the sum of primes")
        assert answer.json()["model"] == "general"
        assert answer.headers["x-collegium-expert"] == "general"
        assert answer.headers["x-collegium-reason"].startswith("upstream_connection_failed: better")


def test_classifier_over_budget_or_failing_leaves_the_prompt_to_the_generalist(edge: Running) -> None:
    slow = edge.chat("please hang")
    assert slow.headers["x-collegium-reason"].startswith("classifier_timeout")
    failed = edge.chat("please fail")
    assert failed.headers["x-collegium-reason"].startswith("classifier_error")
    assert (slow.json()["model"], failed.json()["model"]) == ("general", "general")
    assert edge.chat("two plus two").json()["model"] == "math"


def test_a_full_classifier_queue_costs_nobody_an_answer(edge: Running) -> None:
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(edge.chat("hang").headers["x-collegium-reason"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = {answer.split(":")[0] for answer in answers}
    assert len(answers) == 8
    assert codes <= {"classifier_busy", "classifier_timeout"} and "classifier_busy" in codes


def test_a_crash_in_a_handler_is_an_envelope(tmp_path: Path) -> None:
    class Broken:
        @property
        def version(self) -> str:
            raise KeyError("prompt text that must not be shown")

        def posterior(self, text: str) -> Posterior:
            return Posterior(("math",), (1.0,))

    with running(tmp_path, router=Broken()) as edge:
        answer = edge.chat("hello")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert answer.headers["x-request-id"] in error["message"]
    assert "must not be shown" not in answer.text
