"""Generated bad input inside: request bodies, experts' events, cards, artefacts; test_fuzz_socket.py has the rest.

`pytest tests/test_fuzz.py --repeat N` runs N seeds of each; a seed is INPUTS inputs.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
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
from collegium.serve.requests import Api, check, check_route, parse_object
from collegium.serve.snapshot import Target
from collegium.serve.sse import EventTooLongError, Parser
from collegium.serve.streams import Stream, whole_answer
from collegium.serve.yaml_body import parse_body
from echo_expert import events, whole
from fuzz_kit import BODIES, PIECES, altered, mutated, value

INPUTS = 300
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
