"""Mixed traffic: what experts do wrong, what clients do, and what each of them got in the end."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2
from faults import behaviours as do
from faults.engine import greedy
from faults.expert import Behaviour, Exchange, Expert, answer
from faults.kit import Reply, parsed
from faults.outside import request

HANG = 180.0  # seconds after which a request counts as never answered
_FAULTS: dict[str, Behaviour] = {
    "limited": do.status(429, retry_after="1"), "error": do.status(500), "down": do.status(503), "reset": do.reset,
    "close": do.close, "hang": do.hang, "late": do.late(1.0), "cut": do.broken(9), "fin": do.broken(25, "fin"),
    "event": do.broken(12, "error"), "end": do.broken(20, "end"), "stall": do.broken(15, "stall"),
    "malformed": do.malformed(5), "garbage": do.malformed(5, 4), "unmarked": do.unmarked(), "empty": do.whole(b"{}"),
    "half": do.half_an_answer, "endless": do.endless_event, "bytes": do.raw(b"\x16\x03\x01 no HTTP\r\n\r\n"),
    "policy": do.refusal(400, "no", "content_policy_violation"), "key": do.status(401), "sliced": do.sliced(7),
    "window": do.refusal(400, "maximum context length is 16 tokens", "context_length_exceeded"),
}  # fmt: skip
_ASKED = (
    "sum of 17 and 25", "write a python function that sorts a list", "the causes of the French Revolution",
    "prove that the square root of 2 is irrational", "a poem about rain", "what is a tort", "symptoms of a cold",
)  # fmt: skip
_LEAVES = "leaves"
_HELLO = [{"role": "user", "content": "hello"}]
_JSON = {"content-type": "application/json"}
# Method, path, body, headers, and the error's code.
_REFUSED: tuple[tuple[str, str, bytes, dict[str, str], str], ...] = (
    ("POST", "chat/completions", b'{"model": "auto"', _JSON, "invalid_json"),
    ("POST", "chat/completions", b'{"model": "\\ud800"}', _JSON, "invalid_unicode"),
    ("POST", "chat/completions", b"[" * 2000, _JSON, "invalid_value"),
    ("POST", "chat/completions", b"{}", {"content-type": "text/plain"}, "unsupported_media_type"),
    ("POST", "chat/completions", b"x" * 300_000, _JSON, "invalid_json"),
    ("POST", "chat/completions", b"x" * 4_300_000, _JSON, "request_too_large"),
    ("POST", "chat/completions", b"{}", {**_JSON, "authorization": "Bearer sk-soak-none"}, "invalid_api_key"),
    ("POST", "chat/completions", b"{}", {**_JSON, "x-collegium-timeout": "soon"}, "invalid_value"),
    ("POST", "chat/completions", json.dumps({"model": "none", "messages": _HELLO}).encode(), _JSON, "model_not_found"),
    ("POST", "chat/completions", json.dumps({"model": "auto", "n": 0, "messages": _HELLO}).encode(), _JSON,
     "invalid_value"),
    ("POST", "completions", b'{"model": "auto"}', _JSON, "invalid_value"),
    ("POST", "embeddings", b"{}", _JSON, "not_found"),
    ("GET", "models/none", b"", {}, "model_not_found"),
    ("DELETE", "models", b"", {}, "method_not_allowed"),
)  # fmt: skip


async def misbehave(exchange: Exchange) -> None:
    """What the prompt's first word says: mostly at the first attempt at an expert, at times at the next ones, too."""
    name = exchange.attempt.tag.split("-")[0]
    chance = random.Random(f"{exchange.attempt.tag} {exchange.attempt.number} {exchange.expert.port}").random()
    if name == _LEAVES:
        await (do.unhurried(0.05) if exchange.attempt.body.get("stream") else do.hang)(exchange)
    elif name in _FAULTS and chance < (0.5 if exchange.attempt.number else 0.8):
        await _FAULTS[name](exchange)
    else:
        await answer(exchange)


@dataclass
class Clients:
    """All clients of a run. `told` has the end of each request that was answered, by its id, until it is checked."""

    port: int
    experts: Sequence[Expert]
    models: Sequence[str]
    key: str
    chance: random.Random
    results: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)
    sent: int = 0  # requests of which the edge had the whole head
    left: int = 0  # of these, those whose client did not wait for an answer
    wrong: list[str] = field(default_factory=list)

    def session(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}/v1/",
            headers={"authorization": f"Bearer {self.key}"},
            trust_env=False,
            timeout=HANG,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def visit(self, http: httpx2.AsyncClient, number: int) -> None:
        """One client of the mixture."""
        kinds = ("ask", "ask wrongly", "leave", "not HTTP", "look")
        kind = self.chance.choices(kinds, (83, 7, 6, 1, 3))[0]
        try:
            async with asyncio.timeout(HANG):
                if kind == "ask":
                    await self.ask(http, self._faulty(number), self.chance.choice(self.models))
                elif kind == "ask wrongly":
                    await self._ask_wrongly(http)
                elif kind == "leave":
                    await self._leave(number)
                elif kind == "not HTTP":
                    await self._not_http()
                else:
                    await self._look(http)
        except Exception as error:  # noqa: BLE001 - one of many, all of which are told at the end
            self._fail(f"{kind}: {type(error).__name__} {error}")

    def _faulty(self, number: int) -> str:
        return f"{self.chance.choice(tuple(_FAULTS)) if self.chance.random() < 0.2 else 'well'}-{number}"

    async def ask(self, http: httpx2.AsyncClient, tag: str, model: str) -> bool:
        """Whether the answer came, whole and right; an error that says what it is is the other thing it may be."""
        chance = self.chance
        long = chance.random() < 0.02
        filling = " and again" * chance.randrange(1000, 3000) if long else ""
        text = f"{tag} {chance.choice(_ASKED)}{filling}, {4 if long else chance.choice((4, 20, 60))} tokens"
        chat = chance.random() < 0.8
        said = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text, "max_tokens": 80}
        body = {"model": model, "temperature": 0, "stream": chance.random() < 0.5, **said}
        headers = {"connection": "close"} if chance.random() < 0.3 else {}
        if chance.random() < 0.02:
            headers["x-collegium-timeout"] = f"{chance.uniform(0.2, 2):.1f}"
        reply = await self._answered(http, "chat/completions" if chat else "completions", body, headers)
        right = greedy(body)
        if not (reply.text == right if not reply.error else right.startswith(reply.text)):
            self._fail(f"{tag} for {model}: {reply.text[:100]!r} is not {right[:100]!r}")
        if reply.status == 200 and not (reply.done or reply.error):
            self._fail(f"{tag} for {model}: ends without a mark")
        self.results[self._named(reply)] += 1
        return not reply.error

    async def _answered(
        self, http: httpx2.AsyncClient, path: str, body: dict[str, object], headers: dict[str, str]
    ) -> Reply:
        self.sent += 1
        async with http.stream("POST", path, json=body, headers=headers) as response:
            number = response.headers["x-request-id"]
            for expert in self.experts:
                expert.begun.add(number)
            await response.aread()
        for expert in self.experts:
            expert.begun.discard(number)
        reply = parsed(response)
        self.told[number] = _end(reply.status, bool(reply.error))
        return reply

    @staticmethod
    def _named(reply: Reply) -> str:
        if not reply.error:
            return "right"
        return f"{'an error after the first byte' if reply.status == 200 else reply.status}: {reply.code}"

    def _fail(self, what: str) -> None:
        self.results["FAILED"] += 1
        self.wrong.append(what)

    async def _ask_wrongly(self, http: httpx2.AsyncClient) -> None:
        method, path, body, headers, code = self.chance.choice(_REFUSED)
        self.sent += 1
        response = await http.request(method, path, content=body, headers=headers)
        reply = parsed(response)
        assert reply.code == code and reply.headers["content-type"] == "application/json", reply.raw
        self.told[reply.headers["x-request-id"]] = "error"
        self.results["refused as it should be"] += 1

    async def _look(self, http: httpx2.AsyncClient) -> None:
        if self.chance.random() < 0.5:
            await self.route(http, self.chance.choice(_ASKED))
        else:
            self._looked(await http.get("models"))

    async def route(self, http: httpx2.AsyncClient, text: str) -> None:
        """Ask which expert would answer."""
        self._looked(await http.post("route", json={"text": text}))

    def _looked(self, response: httpx2.Response) -> None:
        self.sent += 1
        assert response.status_code == 200, response.text
        self.told[response.headers["x-request-id"]] = "completed"
        self.results["looked"] += 1

    async def _not_http(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"nonsense\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "invalid_http", body
        self.results["not HTTP, and told so"] += 1

    async def _leave(self, number: int) -> None:
        """Within the head, within the body, before the first event or after it; by FIN or by RST."""
        chance = self.chance
        raw = request(f"{_LEAVES}-{number} 60 tokens", chance.random() < 0.6)
        raw = raw.replace(b"\r\n", f"\r\nAuthorization: Bearer {self.key}\r\n".encode(), 1)
        head = raw.index(b"\r\n\r\n") + 4
        cut = chance.choices((chance.randrange(head), chance.randrange(head, len(raw)), len(raw)), (1, 2, 7))[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw[:cut])
        if chance.random() < 0.5:
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0, 1)):
                    await reader.read(2000)
        if chance.random() < 0.5:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        self.sent += cut >= head
        self.left += cut >= head
        self.results["left"] += 1


def _end(status: int, error: bool) -> str:
    if status != 200:
        return "error"
    return "failed_mid_stream" if error else "completed"
