"""The rest of the catalogue's faults between edge and expert (C17-C34), and of clients that leave (B01-B06)."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from collegium.experts.card import parse_card
from collegium.experts.registry import State
from faults import behaviours as do
from faults.engine import greedy
from faults.expert import Behaviour
from faults.kit import QUICK, Lab, laboratory
from faults.proxy import FaultProxy, Harm

LONG = "60 tokens"
# As in test_failover_bench.py, the usual retry budget would refuse most second sendings of many repeats.
SMALL = replace(QUICK, max_answer=400_000, max_event=100_000, heartbeat=0.2, retry_reserve=1e6)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(Path(tmp_path_factory.mktemp("lab")), SMALL) as started:
        yield started


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A first word that no other test's prompt has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))


@pytest.mark.parametrize("name", ["c17", "c18"])
def test_c17_c18_no_address_and_no_listener(lab: Lab, name: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = "no-such-host.invalid:9" if name == "c17" else f"127.0.0.1:{closed.getsockname()[1]}"
        url = f"http://{host}/v1"
        card = parse_card({"name": name, "backend": {"kind": "remote", "url": url, "model": "m"}})
        lab.registry.add(card)
        lab.registry.observe(name, State.READY, base_url=url)
        while name not in {model["id"] for model in lab.http.get(f"{lab.url}/v1/models").json()["data"]}:
            time.sleep(0.02)
        reply = lab.ask("hello", name)
        assert (reply.status, reply.code) == (502, "upstream_connection_failed")
        assert reply.headers["x-should-retry"] == "true"
        assert lab.attempts(reply) == [(name, "connect")] * 2


JSON_ANSWERS: dict[str, Behaviour] = {
    "html": do.whole(b"<html>log in</html>", "text/html"),
    "empty": do.whole(b""),
    "not-openai": do.whole(b'{"hello": "world"}'),
    "no-choices": do.whole(b'{"id": "x", "choices": []}'),
    "error-in-200": do.whole(b'{"error": {"message": "x"}, "choices": [{}]}'),
    "array": do.whole(b"[]"),
    "half": do.half_an_answer,
    "gzip": do.whole(b"\x1f\x8b", content_encoding="gzip"),
    "redirect": do.status(307, location="http://169.254.169.254/latest"),
    "no-http": do.raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "many-headers": do.whole(b"{}", **{f"x-{number}": "y" * 90 for number in range(1000)}),
    "too-much": do.whole(b"x" * 500_000),
    "no-content": do.status(204, b""),
    "switching": do.raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
}
ROLE = '{"id":"a","choices":[{"index":0,"delta":{"role":"assistant"}}]}'
STREAMS: dict[str, Behaviour] = {
    "json": do.whole(b'{"choices": [{"message": {"content": "x"}}]}'),
    "error-first": do.events('{"error": {"message": "no"}}'),
    "role-then-error": do.events(ROLE, '{"error": {}, "type": "error"}'),
    "role-then-end": do.events(ROLE),
    "only-done": do.events("[DONE]"),
    "nothing": do.events(),
    "long-event": do.endless_event,
    "garbage": do.events(*["{"] * 9),
    "html": do.whole(b"<html>log in</html>", "text/html"),
    "redirect": do.status(302, location="http://169.254.169.254/latest"),
}  # fmt: skip


@pytest.mark.parametrize("answer", JSON_ANSWERS)
def test_c20_c25_answers_that_are_none(lab: Lab, tag: str, answer: str, seed: int) -> None:
    lab.main.plan(tag, JSON_ANSWERS[answer], JSON_ANSWERS[answer])
    named = lab.ask(f"{tag} sum", "math")
    assert (named.status, named.error["type"]) == (502, "upstream_error")
    assert named.headers["x-should-retry"] == "false"
    moved = lab.ask(f"{tag} sum {LONG}")
    assert (moved.status, moved.model, moved.text) == (200, "general", lab.right(f"{tag} sum {LONG}"))
    assert len(lab.main.of(tag)) == 2
    assert not {"set-cookie", "x-1", "location"} & set(moved.headers)


@pytest.mark.parametrize("answer", STREAMS)
def test_c20_c21_streams_without_an_answer(lab: Lab, tag: str, answer: str, seed: int) -> None:
    lab.main.plan(tag, STREAMS[answer], STREAMS[answer])
    named = lab.ask(f"{tag} sum", "math", stream=True)
    assert (named.status, named.error["type"]) == (502, "upstream_error")
    moved = lab.ask(f"{tag} sum {LONG}", stream=True)
    assert (moved.model, moved.text, moved.done) == ("general", lab.right(f"{tag} sum {LONG}"), True)


def test_c23_a_stream_without_end_is_cut(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, do.endless)
    reply = lab.ask(tag, "math", stream=True)
    assert (reply.status, reply.code, reply.done) == (200, "upstream_invalid_response", False)
    assert len(reply.raw) < 2 * SMALL.max_answer
    lab.settled()
    while lab.main.of(tag)[0].left is None:
        time.sleep(0.01)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_c26_any_portions_give_the_same_answer(lab: Lab, tag: str, size: int, seed: int) -> None:
    lab.main.plan(tag, do.sliced(size))
    text = f"{tag} {seed} {LONG}"
    reply = lab.ask(text, "math", stream=True)
    assert (reply.text, reply.done) == (lab.right(text), True)


def test_c27_a_changed_id_model_and_time_do_not_pass(lab: Lab, tag: str) -> None:
    def chunk(number: int, content: str, finish: str | None) -> str:
        choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
        return json.dumps(
            {"id": f"i{number}", "created": number, "model": f"m{number}", "object": "x", "choices": [choice]}
        )

    lab.main.plan(tag, do.events(chunk(1, "a", None), chunk(2, "b", None), chunk(3, "", "stop"), "[DONE]"))
    reply = lab.ask(tag, "math", stream=True)  # one id and model is checked there
    assert (reply.text, reply.model, reply.done) == ("ab", "math", True)
    assert '"created":2' not in reply.raw


@pytest.mark.parametrize("how", ["fin", "end"])
def test_c27_a_cut_tool_call_is_an_error(lab: Lab, tag: str, how: str) -> None:
    def chunk(arguments: str) -> str:
        call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}
        return json.dumps(
            {"id": "i", "model": "m", "object": "x", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        )

    lab.main.plan(tag, do.events(chunk('{"a":'), chunk('"b"}'), *(["[DONE]"] if how == "end" else [])))
    reply = lab.ask(tag, "math", stream=True)
    assert (reply.done, reply.error["type"]) == (False, "upstream_error")


def test_c29_and_heartbeats_of_a_slow_stream(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, do.unhurried(0.5))
    reply = lab.ask(f"{tag} 4 tokens", "math", stream=True)
    assert (reply.text, reply.done) == (lab.right(f"{tag} 4 tokens"), True)
    assert ": keep-alive\n\n" in reply.raw


@pytest.mark.parametrize("status", [401, 403, 404])
def test_c33_wrong_credentials_are_the_operators_business(lab: Lab, tag: str, status: int) -> None:
    lab.main.plan(tag, do.status(status), do.status(status))
    reply = lab.ask(tag, "math")
    assert (reply.status, reply.code, len(lab.main.of(tag))) == (502, "upstream_invalid_response", 1)
    assert lab.ask(f"{tag} sum").model == "general"


def requested(lab: Lab, text: str, model: str, stream: bool) -> bytes:
    raw = json.dumps(lab.body(text, model, stream=stream)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    )
    return head.encode() + b"\r\n\r\n" + raw


def leave(connection: socket.socket, reset: bool) -> float:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone = time.monotonic()
    connection.close()
    return gone


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("when", ["body", "first", "whole", "middle"])
def test_b01_b04_a_client_that_leaves(lab: Lab, tag: str, when: str, reset: bool, seed: int) -> None:
    lab.main.plan(tag, do.broken(10, "stall") if when == "middle" else do.hang)
    ended, accepted = lab.app.ledger.ended.copy(), lab.app.ledger.accepted
    request = requested(lab, f"{tag} sum {LONG}", "auto", stream=when != "whole")
    connection = socket.create_connection(("127.0.0.1", lab.port))
    connection.sendall(request[:-5] if when == "body" else request)
    while not (lab.app.ledger.accepted > accepted if when == "body" else lab.main.of(tag)):
        time.sleep(0.005)
    if when == "middle":
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 200")
        lab.main.begun.add(head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode())
    gone = leave(connection, reset)
    if when != "body":
        (attempt,) = lab.main.of(tag)
        while attempt.left is None:
            time.sleep(0.005)
        assert attempt.left >= gone
    lab.settled()
    assert not lab.spare.of(tag)
    assert {end.value: count for end, count in (lab.app.ledger.ended - ended).items()} == {"client_cancelled": 1}


def test_b06_a_reader_that_is_slow_gets_all_of_it(lab: Lab, tag: str) -> None:
    text = f"{tag} 900 tokens"
    with lab.http.stream(
        "POST", f"{lab.url}/v1/chat/completions", json=lab.body(text, "math", stream=True)
    ) as response:
        raw = b""
        for part in response.iter_raw(2000):
            raw += part
            time.sleep(0.002)
    chunks = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == lab.right(text)
    assert raw.endswith(b"data: [DONE]\n\n")


HARMS = [
    Harm("reset", after=700), Harm("close", after=5000), Harm("stall", after=3000), Harm(slices=1, delay=0.0),
    Harm("corrupt", after=2500), Harm(refuse=True), Harm(slices=300, delay=0.003), Harm("reset", after=0),
]  # fmt: skip


@pytest.mark.parametrize(
    "harm", HARMS, ids=lambda harm: f"{harm.what or 'slow'}-{harm.after}-{harm.slices}-{harm.refuse}"
)
def test_a_harmful_network_never_gives_a_wrong_answer(tmp_path: Path, harm: Harm, seed: int) -> None:
    """Whole and right, or an explicit error: a flipped bit inside a text is what no check of ours can see."""
    with FaultProxy(0, harm, seed) as proxy, laboratory(tmp_path, QUICK, proxy.url, joined=False) as lab:
        proxy.target = lab.main.port
        for model in ("coding", "math"):
            text = f"h{seed} {model} sum {LONG}"
            reply = lab.ask(text, model, stream=True)
            assert reply.done or reply.error
            if harm.what != "corrupt":
                right = lab.right(text)
                assert reply.text == right if reply.done else right.startswith(reply.text)


def test_c34_faults_of_all_kinds_at_random(tmp_path: Path, seed: int) -> None:
    """Named and unnamed requests under load: each ends once, each whole answer is the right one."""
    chance = random.Random(seed)
    kinds = [
        do.status(429), do.status(500), do.status(503), do.reset, do.close, do.broken(9), do.broken(25, "fin"),
        do.broken(12, "error"), do.malformed(5), do.unmarked(), do.whole(b"{}"), do.half_an_answer,
    ]  # fmt: skip
    with laboratory(tmp_path) as lab:
        wrong: list[str] = []

        def client(number: int) -> None:
            with httpx2.Client(trust_env=False, timeout=60) as http:
                for turn in range(8):
                    tag = f"r{seed}-{number}-{turn}"
                    if chance.random() < 0.5:
                        lab.main.plan(
                            tag, chance.choice(kinds), *([chance.choice(kinds)] if chance.random() < 0.3 else [])
                        )
                    body = lab.body(
                        f"{tag} python sum {LONG}",
                        chance.choice(("auto", "coding", "safe", "math")),
                        stream=turn % 2 == 0,
                    )
                    with http.stream("POST", f"{lab.url}/v1/chat/completions", json=body) as response:
                        lab.main.begun.add(response.headers["x-request-id"])
                        response.read()
                    whole = response.status_code == 200 and (turn % 2 or response.text.endswith("data: [DONE]\n\n"))
                    if whole and said(response) != greedy(body):
                        wrong.append(response.text)
                    if not whole and '"error"' not in response.text:
                        wrong.append(response.text)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert lab.settled() and lab.app.ledger.accepted == 48
        assert lab.app.ledger.attempts <= 48 * 1.1 + 100


def said(response: httpx2.Response) -> str:
    if response.headers["content-type"] == "application/json":
        content: str = response.json()["choices"][0]["message"]["content"]
        return content
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: {")]
    return "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines)
