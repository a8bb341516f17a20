"""Generated bad input at every border: the request front, bytes on the socket, the relay of events, cards, artefacts.

`pytest tests/test_fuzz.py --repeat N` runs N seeds of each; a seed is INPUTS inputs (SENT on the socket).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import orjson
import pytest
from collegium.experts.card import Card, CardError, parse_card
from collegium.router.artefact import STARTER
from collegium.router.manifest import HEAD, MANIFEST, ArtefactError, Manifest, read_artefact
from collegium.router.text import routing_text_of_body
from collegium.serve.errors import KINDS, ApiError
from collegium.serve.failure import UpstreamError
from collegium.serve.prepare import upstream_body
from collegium.serve.protocol import bounded_protocol
from collegium.serve.requests import Api, check, check_route, parse_object
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Target
from collegium.serve.sse import EventTooLongError, Parser
from collegium.serve.streams import Stream, whole_answer
from collegium.serve.yaml_body import parse_body
from echo_expert import events, served, whole
from serve_kit import Running, running
from starlette.types import Receive, Scope, Send

INPUTS = 300
SENT = 40

PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\x00", b"\xff", b"\\ud800", b"\\u0000", b"1e400", b"-0", b"NaN",
    b"null", b"true", b'"model"', b'"messages"', b'"content"', b'"n"', b"\r\n", b"\n\n", b"data: ", b"event: ",
    b"[DONE]", b'"role"', b'"tool"', b"999999999999999999999", b"[" * 80, b'{"a":' * 80, b": ", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"0\r\n\r\n", b" HTTP/1.1", b"../..",
]  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A few cuts, copies, flips and insertions."""
    raw = bytearray(seed)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0:
                del raw[at : at + rng.randrange(1, 20)]
            case 1:
                raw[at:at] = rng.choice(PIECES)
            case 2 if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            case 3:
                raw[at:at] = raw[at : at + rng.randrange(40)]
            case 4:
                other = rng.randrange(len(raw) + 1)
                raw[at:other] = rng.choice(PIECES)
    return bytes(raw)


def value(rng: random.Random, depth: int = 0) -> object:
    """Any JSON."""
    if depth < 3 and rng.random() < 0.4:
        items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        if rng.random() < 0.5:
            return items
        names = ("role", "content", "type", "text", "image_url", "url", "function", "source", "data", "usage", "index")
        return {rng.choice(names): item for item in items}
    anything: list[object] = [
        None, True, False, 0, -1, 1, 2**31, 2**63, 0.5, -1e308, "", "user", "text", "x" * 2000, "\u202e\u0000",
        "data:,",
    ]  # fmt: skip
    return rng.choice(anything)


def altered(data: dict[str, object], rng: random.Random) -> dict[str, object]:
    """The object with some of its values replaced, at any depth."""
    copy: dict[str, object] = json.loads(json.dumps(data))
    for _ in range(rng.randrange(1, 4)):
        place: object = copy
        while isinstance(place, dict | list) and place:
            keys: Sequence[object] = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
            inner = place[key]  # type: ignore[call-overload]
            if not isinstance(inner, dict | list) or rng.random() < 0.3:
                place[key] = value(rng)  # type: ignore[call-overload]
                break
            place = inner
    return copy


BODIES: dict[Api, dict[str, object]] = {
    Api.CHAT: {
        "model": "auto", "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"},
                                         {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ],
        "temperature": 0.5, "n": 2, "stop": ["x"], "tools": [{"type": "function"}], "stream": True, "max_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}, "logit_bias": {"1": 2},
    },
    Api.COMPLETIONS: {"model": "auto", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 1, "best_of": 2},
    Api.RESPONSES: {"model": "auto", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
                    "instructions": "x", "text": {"format": {"type": "json_schema"}}, "max_output_tokens": 3},
    Api.MESSAGES: {"model": "auto", "max_tokens": 3, "system": [{"type": "text", "text": "x"}],
                   "messages": [{"role": "user", "content": [{"type": "tool_result", "content": [
                       {"type": "text", "text": "x"}]}]}], "stop_sequences": ["x"]},
}  # fmt: skip
TARGET = Target("math", "http://127.0.0.1:1/v1", "m", "k", vouched=True, system_prompt="Be exact.")


def front(api: Api, raw: bytes) -> None:
    """What the edge does with a body before it sends it on; refusals are the client's fault and say so."""
    try:
        request = check(api, parse_object(raw))
        check_route(parse_object(raw))
    except ApiError as error:
        assert 400 <= error.status < 500, error.code
        assert set(orjson.loads(error.body())["error"]) == {"message", "type", "param", "code"}
        return
    assert request.cost >= request.prompt_tokens >= 0
    routing_text_of_body(request.body).encode()
    orjson.dumps(upstream_body(request, TARGET))


@pytest.mark.parametrize("api", Api)
def test_request_bodies(api: Api, seed: int) -> None:
    rng = random.Random(f"{api}{seed}")
    for _ in range(INPUTS // 2):
        front(api, mutated(json.dumps(BODIES[api]).encode(), rng))
        front(api, json.dumps(altered(BODIES[api], rng)).encode())


@pytest.mark.parametrize("api", Api)
def test_streams_and_answers_of_experts(api: Api, seed: int) -> None:
    """Whatever an expert sends becomes events of this API or one of its failures, however it is split."""
    kind = {Api.CHAT: "chat", Api.COMPLETIONS: "text", Api.RESPONSES: "responses"}.get(api, "messages")
    body: dict[str, object] = {"model": "m", "prompt": "x", "stream_options": {"include_usage": True}}
    rng = random.Random(f"{api}{seed}")
    for _ in range(INPUTS // 2):
        relayed(api, mutated(b"".join(events(kind, "hello", body)), rng), rng)
        pieces = [rng.choice(PIECES) + orjson.dumps(value(rng), option=orjson.OPT_NON_STR_KEYS) for _ in range(3)]
        relayed(api, b"data: " + b"\n\ndata: ".join(pieces) + b"\n\n", rng)
        for answer in (mutated(json.dumps(whole(kind, "hello", body)).encode(), rng),
                       json.dumps(altered(whole(kind, "hello", body), rng)).encode()):  # fmt: skip
            try:
                assert orjson.loads(whole_answer(api, "math", answer))["model"] == "math"
            except UpstreamError as error:
                assert error.status == 502


def relayed(api: Api, sent: bytes, rng: random.Random) -> None:
    whole_parser, split_parser = Parser(10_000), Parser(10_000)
    try:
        expected = whole_parser.feed(sent)
        found = []
        for part in parts(sent, rng):
            found += split_parser.feed(part)
    except EventTooLongError:
        return
    assert found == expected
    stream = Stream(api, "math")
    try:
        for event in found:
            data = stream.take(event)
            if data is not None and b"[DONE]" not in data:
                lines = [line for line in data.split(b"\n") if line.startswith(b"data: ")]
                assert len(lines) == 1 and data.endswith(b"\n\n") and isinstance(orjson.loads(lines[0][6:]), dict)
    except UpstreamError as error:
        assert KINDS[error.code].status == 502


def parts(sent: bytes, rng: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(sent):
        size = rng.choice((1, 2, 3, 10, 100))
        yield sent[at : at + size]
        at += size


@pytest.mark.parametrize("kind", ["application/json", "application/yaml"])
def test_cards(kind: str, seed: int) -> None:
    rng = random.Random(f"{kind}{seed}")
    card: dict[str, object] = {
        "name": "law", "backend": {"kind": "remote", "url": "https://a.example/v1", "model": "m", "api_key_env": "K"},
        "domains": {"law": 0.5}, "admitted": ["law"], "limits": {"context_window": 4096}, "cost": {"input": 1.0},
        "capabilities": ["tools"],
    }  # fmt: skip
    for _ in range(INPUTS // 2):
        for raw in (mutated(json.dumps(card).encode(), rng), json.dumps(altered(card, rng)).encode()):
            try:
                parsed = parse_card(parse_body(raw, kind))
            except CardError:
                continue
            except ApiError as error:
                assert error.status in (400, 415)
            else:
                assert isinstance(parsed, Card)


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


@pytest.mark.parametrize("file", [MANIFEST, HEAD])
def test_artefacts(file: str, seed: int, tmp_path: Path) -> None:
    """A changed byte is refused; with a checksum to match, what is read is either right in shape or refused."""
    rng = random.Random(f"{file}{seed}")
    folder = shutil.copytree(STARTER, tmp_path / "router")
    original = (folder / file).read_bytes()
    for _ in range(INPUTS // 10):
        changed = headed(original, rng) if file == HEAD else mutated(original, rng)
        (folder / file).write_bytes(changed)
        if file == HEAD:
            manifest = json.loads((STARTER / MANIFEST).read_text())
            manifest["files"][HEAD] = {"sha256": hashlib.sha256(changed).hexdigest(), "size": len(changed)}
            written = Manifest.model_validate(manifest)
            (folder / MANIFEST).write_bytes(
                written.model_copy(update={"version": written.content_version()}).canonical()
            )
        try:
            _, tensors = read_artefact(folder)
        except ArtefactError:
            continue
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def headed(original: bytes, rng: random.Random) -> bytes:
    """Mutate the header of a safetensors file more often than its numbers."""
    size = 8 + int.from_bytes(original[:8], "little")
    if rng.random() < 0.3:
        return rng.randbytes(8) + original[8:]
    return mutated(original[:size], rng) + original[size:]
