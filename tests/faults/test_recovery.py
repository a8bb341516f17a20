"""Experts that are gone for a while, and processes that are killed: what the edge does meanwhile and afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.serve.settings import EdgeSettings
from faults import behaviours as do
from faults.engine import greedy
from faults.kit import QUICK, Lab, laboratory

TESTS = Path(__file__).parent.parent


# Down altogether (True), or for requests only: then nothing but a request can find out that it is back.
FORGIVING = {
    listed: EdgeSettings(total=20, breaker_failures=3, breaker_pause=0.6 if listed else 30, breaker_look=0.1)
    for listed in (False, True)
}


def down_then_healthy(lab: Lab, down: float, listed: bool) -> None:
    """The main expert is down for so many seconds; the spare one answers until it is back, and it is hardly asked."""
    before, pause = len(lab.main.attempts), FORGIVING[listed].breaker_pause
    until = time.monotonic() + down
    lab.main.always = do.down_until(until)
    lab.main.down_until = 0 if listed else until
    text = "c15 the sum of it"
    while True:
        reply = lab.ask(text)
        assert reply.status == 200 and reply.text == lab.right(text)
        if reply.model == "math":
            break
        time.sleep(0.02)
    failed = [attempt for attempt in lab.main.attempts[before:] if attempt.began < until]
    assert len(failed) <= 3 + (down / pause if listed else 0)


@pytest.mark.parametrize("listed", [True, False])
def test_c15_down_then_healthy(tmp_path: Path, listed: bool) -> None:
    with laboratory(tmp_path, FORGIVING[listed]) as lab:
        down_then_healthy(lab, 3.0, listed)


@contextmanager
def process(port: int = 0, pace: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A scripted expert as a process of its own, and its port; `pace` in milliseconds a token."""
    command = [sys.executable, str(TESTS / "faults" / "expert.py"), str(port), str(pace)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)})
    assert child.stdout is not None
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait(60)
        child.stdout.close()


@contextmanager
def killable(folder: Path, pace: int) -> Iterator[tuple[Lab, subprocess.Popen[str], int]]:
    """A laboratory whose specialists are one process; only the spare expert's log joins the ledger's."""
    settings = replace(QUICK, recovery=60, total=90)
    with process(pace=pace) as (child, port), laboratory(folder, settings, f"http://127.0.0.1:{port}/v1", False) as lab:
        yield lab, child, port


@contextmanager
def begun(lab: Lab, body: dict[str, object]) -> Iterator[Callable[[], str]]:
    """A stream of which the first part has come; call for all of it."""
    with lab.http.stream("POST", f"{lab.url}/v1/chat/completions", json=body) as response:
        parts = response.iter_text()
        first = next(parts)
        yield lambda: first + "".join(parts)


def said(raw: str) -> str:
    """The text of a whole stream."""
    *events, mark, _ = [event for event in raw.split("\n\n") if not event.startswith(":")]
    assert mark == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def test_d02_killed_mid_stream_and_restarted(tmp_path: Path, seed: int) -> None:
    with killable(tmp_path, 10) as (lab, child, port):
        body = lab.body(f"d02-{seed} 150 tokens", "coding", stream=True)
        with begun(lab, body) as rest:
            child.kill()
            child.wait(60)
            with process(port):
                raw = rest()
        assert said(raw) == greedy(body)
        (fields,) = lab.settled().requests.values()
        attempts = fields["attempts"]
        assert isinstance(attempts, list)
        assert attempts[0]["result"] == "broken" and attempts[-1]["kind"] == "continuation"
        assert fields["end"] == "completed"


def test_d02_killed_mid_stream_and_gone(tmp_path: Path) -> None:
    settings = replace(QUICK, recovery=0.5)
    with process(pace=10) as (child, port), laboratory(tmp_path, settings, f"http://127.0.0.1:{port}/v1", False) as lab:
        with begun(lab, lab.body("d02 150 tokens", "coding", stream=True)) as rest:
            child.kill()
            raw = rest()
        assert "[DONE]" not in raw
        assert json.loads(raw.rstrip().split("data: ")[-1])["error"]["code"] == "upstream_stream_truncated"
        assert [fields["end"] for fields in lab.settled().requests.values()] == ["failed_mid_stream"]


def test_d01_killed_with_a_request_in_work(tmp_path: Path) -> None:
    """Routed, it goes to another expert; asked for by name, it waits for the engine that is started again."""
    with killable(tmp_path, 0) as (lab, child, port), ThreadPoolExecutor(2) as pool:
        child.send_signal(signal.SIGSTOP)
        text = "d01 a python function"
        unnamed = pool.submit(lab.ask, text)
        named = pool.submit(lab.ask, text, "coding")
        while lab.app.ledger.in_flight < 2:
            time.sleep(0.01)
        child.kill()
        child.wait(60)
        assert (unnamed.result().status, unnamed.result().model) == (200, "general"), lab.attempts(unnamed.result())
        with process(port):
            assert (named.result().status, named.result().text) == (200, lab.right(text))


def test_d01_killed_and_gone(tmp_path: Path) -> None:
    settings = replace(QUICK, recovery=1)
    with process() as (child, port), laboratory(tmp_path, settings, f"http://127.0.0.1:{port}/v1", False) as lab:
        child.kill()
        child.wait(60)
        reply = lab.ask("d01 a python function", "coding")
        assert (reply.status, reply.code) == (502, "upstream_connection_failed")
        assert reply.headers["x-should-retry"] == "true"


def test_d01_an_engine_whose_proxy_finds_none_is_waited_for(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        lab.main.plan("d01", *[do.status(503)] * 6)
        assert lab.ask("d01 a python function", "coding").text == lab.right("d01 a python function")
        lab.main.plan("d01b", *[do.status(429)] * 6)
        assert lab.ask("d01b a python function", "coding").status == 429
        assert len(lab.main.of("d01b")) == 3


def test_d01_a_request_that_may_be_the_reason_is_sent_three_times(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        lab.main.plan("d01", *[do.reset] * 9)
        assert lab.ask("d01 a python function", "coding").status == 502
        assert len(lab.main.of("d01")) == 3


def test_d02_a_continuation_may_take_longer_than_the_search_for_it(tmp_path: Path) -> None:
    with laboratory(tmp_path, replace(QUICK, recovery=3)) as lab:
        lab.main.pace = 0.03
        text = "d02 150 tokens"
        lab.main.plan("d02", do.broken(9))
        reply = lab.ask(text, "coding", stream=True)
        assert (reply.text, reply.done) == (lab.right(text), True)
        assert [result for _, result in lab.attempts(reply)] == ["broken", "ok"]


def test_d08_stopped_and_let_go_on(tmp_path: Path) -> None:
    with killable(tmp_path, 10) as (lab, child, _):
        body = lab.body("d08 100 tokens", "coding", stream=True)
        with begun(lab, body) as rest:
            child.send_signal(signal.SIGSTOP)
            threading.Timer(3.0, child.send_signal, [signal.SIGCONT]).start()
            raw = rest()
        assert said(raw) == greedy(body)
