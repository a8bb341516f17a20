"""Generated bad input from outside: bytes on the socket, and requests to a whole edge.

`pytest tests/test_fuzz_socket.py --repeat N` runs N seeds; a seed is SENT inputs for each test.
"""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from collegium.serve.protocol import bounded_protocol
from collegium.serve.requests import Api
from collegium.serve.settings import EdgeSettings
from echo_expert import served
from fuzz_kit import BODIES, mutated
from serve_kit import Running, running
from starlette.types import Receive, Scope, Send

SENT = 40


@pytest.fixture(scope="module")
def door() -> Iterator[int]:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            continue
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    bounds = EdgeSettings(header_time=0.3, body_time=0.3)
    with served(answer, bounded_protocol(bounds)) as url:
        yield int(url.rsplit(":", 1)[1])


REQUESTS = (
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
    b'POST /v1/route HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"text":"hi"}',
    b"POST /v1/route HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
)


def test_bytes_on_the_socket(door: int, seed: int) -> None:
    """Each answer is whole HTTP, ours or an envelope with 4xx; the connection always ends."""
    rng = random.Random(seed)
    for _ in range(SENT):
        sent = mutated(rng.choice(REQUESTS), rng)
        with socket.create_connection(("127.0.0.1", door), timeout=30) as connection:
            send(connection, sent)
            received = b""
            with suppress(ConnectionResetError):
                while part := connection.recv(65_536):
                    received += part
        check_answers(received, sent)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = EdgeSettings(header_time=0.5, body_time=0.5)
    with running(Path(tmp_path_factory.mktemp("edge")), settings) as started:
        yield started


def test_requests_to_the_whole_edge(edge: Running, seed: int) -> None:
    """Every path up to the decision: no 5xx, no answer but ours or an envelope, no expert asked."""
    rng = random.Random(f"edge{seed}")
    paths = [
        "route",
        "models",
        "models/x",
        "chat/completions",
        "completions",
        "responses",
        "messages",
        "../admin",
        "%2e",
    ]
    with connected(edge.port) as connection:
        for _ in range(SENT):
            api = rng.choice(list(Api))
            body = mutated(json.dumps({**BODIES[api], "model": "nobody"}).encode(), rng)
            path = "route" if rng.random() < 0.5 else rng.choice(paths)
            kind = rng.choice(["application/json"] * 9 + ["text/plain"])
            method = rng.choice(["POST", "POST", "GET", "PUT"])
            head = f"{method} /v1/{path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answered(connection, body)
    assert edge.echo.received == []


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answered(connection: socket.socket, sent: bytes) -> None:
    """Read one answer of a connection that goes on."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        assert part, sent
        received += part
    length = re.search(rb"content-length: (\d+)", received)
    assert length is not None
    whole = received.index(b"\r\n\r\n") + 4 + int(length[1])
    while len(received) < whole:
        received += connection.recv(65_536)
    check_answers(received, sent, (200, 400, 404, 405, 415))


def send(connection: socket.socket, sent: bytes) -> None:
    """All of it, unless the server has refused it already."""
    try:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise


def check_answers(received: bytes, sent: bytes, statuses: tuple[int, ...] = (100, 200, 400, 431)) -> None:
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        assert status in statuses, (sent, head)
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        body, received = rest[:size], rest[size:]
        if status >= 400:
            assert set(orjson.loads(body)["error"]) == {"message", "type", "param", "code"}
