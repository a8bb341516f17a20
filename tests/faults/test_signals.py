"""What counts as an expert's failure, who reaches the client, and what odd experts and clients do not change."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from collegium.experts.card import parse_card
from collegium.experts.registry import State
from faults import behaviours as do
from faults.expert import Exchange, answer
from faults.kit import QUICK, Lab, laboratory
from faults.test_catalogue import requested

BREAKING = replace(QUICK, breaker_failures=3, breaker_pause=600, breaker_look=0.2, first_byte=1.5, retry_reserve=1e6)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(Path(tmp_path_factory.mktemp("lab")), replace(QUICK, first_byte=20, retry_reserve=1e6)) as started:
        hurry(started, "coding", 0.4)
        yield started


def hurry(lab: Lab, name: str, first_token: float) -> None:
    """Give one expert little time for its first token."""
    record = lab.registry.expert(name)
    limits = record.card.limits.model_copy(update={"first_token": first_token})
    lab.registry.replace(record.card.model_copy(update={"limits": limits}))
    lab.registry.add(parse_card({"name": "mark", "backend": {"kind": "remote", "url": lab.main.url, "model": "m"}}))
    lab.registry.observe("mark", State.READY, base_url=lab.main.url)
    while lab.http.get(f"{lab.url}/v1/models/mark").status_code != 200:
        time.sleep(0.02)


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A first word that no other test's prompt has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))


def events(response: str) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in response.split("\n\n") if line.startswith("data: {")]


def test_h01_answers_cut_after_their_first_byte_open_the_breaker(tmp_path: Path) -> None:
    with laboratory(tmp_path, BREAKING) as lab:
        lab.main.plan("cut", *[do.broken(9, "fin")] * 3)
        for _ in range(3):
            assert lab.ask("cut 60 tokens", "math", stream=True).code == "upstream_stream_truncated"
        refused = lab.ask("cut 60 tokens", "math", stream=True)
        assert (refused.status, refused.code) == (503, "no_healthy_expert")
        assert len(lab.main.of("cut")) == 3
        assert lab.app.ledger.ended["failed_mid_stream"] == 3  # type: ignore[index]


def test_h02_clients_that_leave_say_nothing_of_the_expert(tmp_path: Path) -> None:
    with laboratory(tmp_path, replace(BREAKING, breaker_failures=1, first_byte=20)) as lab:
        for number in range(3):
            lab.main.plan(f"left{number}", do.hang)
            with socket.create_connection(("127.0.0.1", lab.port)) as connection:
                connection.sendall(requested(lab, f"left{number} sum", "math", stream=True))
                while not lab.main.of(f"left{number}"):
                    time.sleep(0.005)
        lab.await_left(*lab.main.attempts)
        assert lab.ask("stayed", "math").status == 200
        assert lab.app.ledger.ended["client_cancelled"] == 3  # type: ignore[index]


def test_c30_an_expert_that_lists_its_models_but_hangs_is_left_alone(tmp_path: Path) -> None:
    with laboratory(tmp_path, BREAKING) as lab:
        lab.main.plan("hung", *[do.hang] * 9)
        for _ in range(3):
            assert lab.ask("hung sum", stream=True).model == "general"
        time.sleep(0.5)  # looks at /models, which answers
        assert lab.ask("hung sum", stream=True).model == "general"
        assert len(lab.main.of("hung")) == 3


def test_c32_one_of_two_experts_reaches_the_client(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.late(random.Random(seed).uniform(0.3, 0.5)))
    text = f"{tag} python 60 tokens"
    reply = lab.ask(text, stream=True)
    assert (reply.text, reply.done) == (lab.right(text), True)
    if reply.model == "general":
        assert lab.attempts(reply) == [("coding", "late"), ("general", "ok")]
    else:
        assert not lab.spare.of(tag)


def test_c28_an_expert_that_works_on_for_nobody_keeps_no_place(tmp_path: Path) -> None:
    async def deaf(exchange: Exchange) -> None:
        """Sees its client go and does not care."""
        while not exchange.expert.begun:
            time.sleep(0.005)

    with laboratory(tmp_path, replace(QUICK, concurrency=1), joined=False) as lab:
        lab.main.plan("deaf", deaf)
        with socket.create_connection(("127.0.0.1", lab.port)) as connection:
            connection.sendall(requested(lab, "deaf sum", "math", stream=True))
            while not lab.main.of("deaf"):
                time.sleep(0.005)
        lab.settled()
        lab.main.begun.add("anything")
        assert lab.ask("next", "math").status == 200


def test_d13_a_burst_of_just_what_fits_is_taken(tmp_path: Path) -> None:
    async def together(exchange: Exchange) -> None:
        while len(exchange.expert.attempts) < 16:
            await exchange.pause(0.01)
        await answer(exchange)

    with laboratory(tmp_path, replace(QUICK, concurrency=16, queue=1, first_byte=20)) as lab:
        lab.main.always = together
        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(lambda number: lab.ask(f"burst{number}", "math"), range(16)))
        assert [reply.status for reply in replies] == [200] * 16


def test_a23_usage_comes_once_if_asked_for_and_choices_keep_their_order(lab: Lab, tag: str) -> None:
    told = lab.ask(tag, "math", stream=True, stream_options={"include_usage": True})
    assert [bool(event.get("usage")) for event in events(told.raw)].count(True) == 1
    assert not any(event.get("usage") for event in events(lab.ask(tag, "math", stream=True).raw))

    def chunk(index: int, content: str, finish: str | None = None) -> str:
        choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
        return json.dumps({"id": "i", "model": "m", "object": "x", "created": 1, "choices": [choice]})

    said = [(0, "a"), (1, "b"), (1, "c"), (0, "d")]
    ends = [chunk(1, "", "stop"), chunk(0, "", "stop")]
    lab.main.plan(f"{tag}n", do.events(*[chunk(*one) for one in said], *ends, "[DONE]"))
    both = lab.ask(f"{tag}n", "math", stream=True, n=2)
    choices = [event["choices"][0] for event in events(both.raw)]  # type: ignore[index]
    assert [(choice["index"], choice["delta"]["content"]) for choice in choices] == [*said, (1, ""), (0, "")]
    lab.main.plan(f"{tag}cut", do.events(*[chunk(*one) for one in said], ends[0], "[DONE]"))
    assert lab.ask(f"{tag}cut", "math", stream=True, n=2).code == "upstream_stream_truncated"


def test_c25_no_header_of_an_expert_passes(lab: Lab, tag: str) -> None:
    body = (
        b'{"id":"i","object":"x","model":"m","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
    )
    odd = {"set-cookie": "a=b", "x-should-retry": "true", "connection": "x-odd", "x-odd": "1"}
    shown = "".join(f"{name}: {value}\r\n" for name, value in odd.items())
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{shown}\r\n"
    lab.main.plan(tag, do.raw(head.encode() + body))
    reply = lab.ask(tag, "math")
    assert reply.text == "x" and not set(odd) & set(reply.headers)
    lab.main.plan(f"{tag}late", *[do.status(429, retry_after="999999999")] * 3)
    refused = lab.ask(f"{tag}late", "math")
    assert (refused.status, refused.headers["retry-after"]) == (429, "120")
    folded = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-a: 1\n\rset-cookie: a=b\r\n\r\n"
    lab.main.plan(f"{tag}folded", do.raw(folded))
    assert lab.ask(f"{tag}folded", "math").status == 502


def test_b05_a_client_that_shuts_down_its_sending_side_is_taken_for_gone(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, do.hang)
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as connection:
        connection.sendall(requested(lab, f"{tag} sum", "math", stream=False))
        while not lab.main.of(tag):
            time.sleep(0.005)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    lab.await_left(*lab.main.of(tag))
    assert lab.settled() and not lab.spare.of(tag)


def test_b09_a_connection_outlives_a_refused_request_but_not_a_broken_one(lab: Lab, tag: str) -> None:
    good = requested(lab, tag, "math", stream=False)
    bad = good.split(b"\r\n\r\n")[0].split(b"Content-Length")[0] + b"Content-Length: 1\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as connection:
        for sent, status in ((bad, b"400"), (good, b"200"), (bad, b"400")):
            connection.sendall(sent)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            assert head.split(b" ")[1] == status
            left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while left:
                left -= len(connection.recv(left))
        connection.sendall(b"nonsense\r\n\r\n" + good)
        answered = b""
        while part := connection.recv(65536):
            answered += part
        assert answered.startswith(b"HTTP/1.1 400 ") and answered.count(b"HTTP/1.1") == 1
    assert len(lab.main.of(tag)) == 1
    lab.settled()


def test_f07_a_stream_outlives_its_experts_removal(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab, ThreadPoolExecutor(1) as threads:
        lab.main.plan("leaving", do.unhurried(0.05))
        reply = threads.submit(lab.ask, "leaving 20 tokens", "math", stream=True)
        while not lab.main.of("leaving"):
            time.sleep(0.005)
        lab.registry.remove("math")
        while lab.ask("new", "math").status != 404:
            time.sleep(0.02)
        assert lab.ask("new sum").model == "general"
        assert lab.main.of("leaving")[0].ended is None
        assert (reply.result().text, reply.result().done) == (lab.right("leaving 20 tokens"), True)


@pytest.mark.slow
def test_g02_clients_that_retry_do_not_multiply_what_experts_get(tmp_path: Path) -> None:
    with (
        laboratory(tmp_path, replace(QUICK, retry_reserve=2), joined=False) as lab,
        openai.OpenAI(base_url=f"{lab.url}/v1", api_key="none", max_retries=2) as client,
        ThreadPoolExecutor(20) as threads,
    ):
        lab.main.always = do.status(503)

        def insist(number: int) -> None:
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="math", messages=[{"role": "user", "content": f"s{number}"}])

        list(threads.map(insist, range(20)))
        lab.settled()
        assert lab.app.ledger.accepted == 60
        assert lab.app.ledger.attempts <= 60 * 1.1 + 2


def test_g06_connections_to_an_expert_are_used_again(lab: Lab, tag: str) -> None:
    ports = set()

    async def noting(exchange: Exchange) -> None:
        ports.add(exchange.peer)
        await answer(exchange)

    lab.main.plan(tag, *[noting] * 20)
    for number in range(20):
        assert lab.ask(tag, "math", stream=number % 2 == 0).done
    assert len(ports) <= 4  # an idle one is closed after 3 s, which a busy machine may take
