"""The laboratory itself: its model is deterministic, its expert does as told, its proxy harms as told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx2
import pytest
from faults import behaviours as do
from faults.engine import Generation, decode, greedy
from faults.expert import Expert
from faults.proxy import FaultProxy, Harm


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def text_of(chunks: list[dict[str, object]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    return "".join(choice.get("text", "") or choice.get("delta", {}).get("content", "") for choice in choices)


def test_the_model_says_the_same_from_any_token_on(seed: int) -> None:
    asked = body(f"a {seed} 60 tokens", return_token_ids=True)
    generation = Generation(asked, chat=True, id="x", seed=seed)
    assert text_of(generation.chunks()) == greedy(asked) == decode(generation.tokens)
    assert any(ord(character) > 127 for character in greedy(asked))
    for at in range(len(generation.tokens)):
        rest = {"prompt": [*generation.prompt.ids, *generation.tokens[:at]], "model": "m", "max_tokens": 999}
        later = Generation({**rest, "temperature": 0}, chat=False, id="y")
        assert generation.tokens[:at] + later.tokens == generation.tokens


@pytest.fixture
def expert() -> Iterator[Expert]:
    with Expert() as started:
        yield started


def test_attempts_follow_their_script_and_are_logged(expert: Expert) -> None:
    expert.plan("t1", do.status(503, retry_after="7"), do.reset, do.half_an_answer)
    with httpx2.Client(trust_env=False) as http:

        def ask() -> httpx2.Response:
            return http.post(f"{expert.url}/chat/completions", json=body("t1 5 tokens"))

        assert (first := ask()).status_code == 503 and first.headers["retry-after"] == "7"
        with pytest.raises(httpx2.TransportError):
            ask()
        with pytest.raises(httpx2.RemoteProtocolError):
            ask()
        assert ask().json()["choices"][0]["message"]["content"] == greedy(body("t1 5 tokens"))
    assert [attempt.number for attempt in expert.of("t1")] == [0, 1, 2, 3]


def test_a_client_that_leaves_is_noticed_at_once(expert: Expert) -> None:
    expert.plan("t2", do.hang)
    raw = json.dumps(body("t2")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", expert.port)) as connection:
        connection.sendall(head + raw)
        while not expert.attempts:
            pass
    while expert.attempts[0].left is None:
        pass


@pytest.mark.parametrize("what", ["reset", "close", "corrupt"])
def test_the_proxy_harms_after_so_many_bytes(expert: Expert, what: str, seed: int) -> None:
    with FaultProxy(expert.port, Harm(what, after=300), seed) as proxy, httpx2.Client(trust_env=False) as http:
        asked = body("t3 60 tokens", stream=True)
        got = b""
        try:
            with http.stream("POST", f"{proxy.url}/chat/completions", json=asked) as response:
                for part in response.iter_raw():
                    got += part
        except httpx2.TransportError:
            assert what != "corrupt" or got
        else:
            assert what == "corrupt"
        expected = httpx2.post(f"{expert.url}/chat/completions", json=asked, trust_env=False).content
        assert got.replace(b'"up-0"', b'"up-1"') != expected


def test_a_refusing_proxy_resets(expert: Expert) -> None:
    with FaultProxy(expert.port, Harm(refuse=True)) as proxy, pytest.raises(httpx2.TransportError):
        httpx2.get(f"{proxy.url}/models", trust_env=False)
