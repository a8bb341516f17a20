"""Bytes at the door: heads that are too large or too slow, garbage, pipelining, clients that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from collegium.serve.protocol import bounded_protocol
from collegium.serve.settings import EdgeSettings
from echo_expert import served
from starlette.types import Receive, Scope, Send

HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 30_000_000


class Application:
    """Answers with its path; /slow in two parts, /large with more than any buffer holds, /early without its body."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.left = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path != "/early":
            while (await receive()).get("more_body"):
                continue
        size = LARGE if path == "/large" else len(path) * 2
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/large":
            for _ in range(30):
                await send({"type": "http.response.body", "body": b"x" * (size // 30), "more_body": True})
            await receive()
            self.left.set()
        if path == "/slow":
            await send({"type": "http.response.body", "body": path.encode(), "more_body": True})
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": path.encode()})
        else:
            await send({"type": "http.response.body", "body": path.encode() * 2})


@contextmanager
def door(application: Application | None = None, **bounds: float) -> Iterator[int]:
    settings = EdgeSettings(**bounds)  # type: ignore[arg-type]
    with served(application or Application(), bounded_protocol(settings)) as url:
        yield int(url.rsplit(":", 1)[1])


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def received(connection: socket.socket) -> bytes:
    """All until the server closes."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"content-type: application/json" in lines and b"connection: close" in lines
    assert any(line.startswith(b"x-request-id: req_") for line in lines)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


def exchange(port: int, sent: bytes) -> bytes:
    with connected(port) as connection:
        connection.sendall(sent)
        return received(connection)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_gets_an_envelope_and_no_second_answer(sent: bytes) -> None:
    with door() as port:
        answer = exchange(port, sent + HEAD)
        assert refusal(answer) == (400, "invalid_http")
        assert answer.count(b"x-request-id") == 1 and b"/a/a" not in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000,
        b"\r\n" * 100_000,
        b"GET /?" + b"a=b&" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["header", "headers", "path", "endless", "empty lines", "query"],
)
def test_heads_are_bounded(sent: bytes) -> None:
    with door() as port, connected(port) as connection:
        connection.settimeout(30)
        with suppress(OSError):  # it may be refused while it is sent
            connection.sendall(sent)
        assert received(connection)[:12] in (b"HTTP/1.1 431", b"")
    with door() as port:
        assert exchange(port, sent[:20_000] if sent.startswith(b"GET /x") else sent[:40_000])[:12] in (
            b"HTTP/1.1 431", b"HTTP/1.1 400",
        )  # fmt: skip


def test_a_large_head_within_the_bounds_passes() -> None:
    with door() as port:
        sent = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"x" * 30_000 + b"\r\n\r\n"
        assert exchange(port, sent).endswith(b"/a/a")


@pytest.mark.parametrize("trickle", [b"GET / HTTP/1.1\r\nX: ", b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n"])
@pytest.mark.parametrize("before", [b"", HEAD])
def test_a_head_that_does_not_arrive_in_time(trickle: bytes, before: bytes) -> None:
    with door(header_time=0.4) as port, connected(port) as connection:
        connection.sendall(before)
        answer = b""
        while before and b"/a/a" not in answer:
            answer += connection.recv(65_536)
        started = time.monotonic()
        for byte in trickle * 100:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
            if time.monotonic() - started > 20:
                pytest.fail("the connection is still open")
        answer = received(connection)
        assert answer == b"" or refusal(answer) == (400, "request_incomplete")


def test_a_connection_that_says_nothing_is_closed() -> None:
    with door(header_time=0.2) as port:
        assert exchange(port, b"") == b""


def test_a_body_that_trickles_on_after_its_answer_does_not_hold_the_connection() -> None:
    with door(body_time=0.1) as port, connected(port) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(300):
                connection.sendall(b"x")
                time.sleep(0.1)


def test_garbage_behind_a_request_does_not_get_into_its_answer() -> None:
    application = Application()
    with door(application) as port, connected(port) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"/slow"):
            answer += connection.recv(65_536)
        connection.sendall(b"\x00garbage\r\n\r\n" + HEAD)
        application.go_on.set()
        answer += received(connection)
        whole, behind = answer.split(b"\r\n\r\n", 1)[1][:10], answer.split(b"\r\n\r\n", 1)[1][10:]
        assert whole == b"/slow/slow" and b"/a/a" not in behind
        assert not behind or refusal(behind) == (400, "invalid_http")


def test_pipelined_requests_are_answered_in_order() -> None:
    with door() as port:
        sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(10, 30))
        answer = exchange(port, sent + b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [b"/%d/%d" % (number, number) for number in range(10, 30)] + [b"/end/end"]


def test_an_upgrade_is_not_made_and_the_connection_says_that_it_ends() -> None:
    with door() as port:
        sent = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
        answer = exchange(port, sent)
        assert answer.endswith(b"/a/a") and b"connection: close" in answer


def test_a_client_that_does_not_read_is_cut_and_one_that_reads_slowly_is_not() -> None:
    application = Application()
    with door(application, client_stall=0.4) as port, connected(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        assert application.left.wait(20)
        assert len(received(connection)) < LARGE
    with door(client_stall=3) as port, connected(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        read = 0
        for _ in range(10):
            read += len(connection.recv(500_000))
            time.sleep(0.15)
        while read < LARGE and (part := connection.recv(1_000_000)):
            read += len(part)
        assert read >= LARGE


def test_more_connections_than_allowed_are_told_so() -> None:
    with door(max_connections=2) as port, connected(port), connected(port):
        time.sleep(0.1)
        assert refusal(exchange(port, HEAD)) == (503, "server_is_overloaded")
