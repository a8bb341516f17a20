"""An edge over scripted experts, what a client gets from it, and the ledger that must balance after every test."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from collegium.experts.card import parse_card
from collegium.experts.registry import Registry, State
from collegium.serve.edge import create_app
from collegium.serve.gate import Edge
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Sources
from echo_expert import served
from faults.engine import greedy
from faults.expert import Attempt, Expert
from serve_kit import KeywordRouter

# Generous for a busy machine, short enough to wait for.
QUICK = EdgeSettings(
    first_byte=2, between_events=2, total=20, recovery=10, connect=10, breaker_failures=10**6, classifier_budget=5
)
_WAIT = 30.0


@dataclass(frozen=True)
class Reply:
    """What the client got. `text` is the answer, `done` whether the end mark came, `error` the envelope's inside."""

    status: int
    headers: Mapping[str, str]
    raw: str
    text: str
    done: bool
    model: str
    usage: dict[str, int] | None
    error: dict[str, object]

    @property
    def code(self) -> object:
        return self.error.get("code")


def parsed(response: httpx2.Response) -> Reply:
    """An answer, whole or streamed, checked: JSON throughout, one id, one model, nothing after an error or [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    streamed = response.headers["content-type"].startswith("text/event-stream")
    done = streamed and lines[-1] == "data: [DONE]"
    assert response.text.count("data: [DONE]") == (1 if done else 0)
    events = [line.removeprefix("data: ") for line in lines[: len(lines) - done]] if streamed else [response.text]
    objects = [json.loads(event) for event in events]
    error = objects[-1].get("error") or {}
    assert not any("error" in one for one in objects[:-1])
    assert not error or set(error) == {"message", "type", "param", "code"}
    assert "10.0.0.1" not in response.text and "secret" not in response.text
    assert "token_ids" not in response.text
    chunks = [one for one in objects if "error" not in one]
    assert len({(one["id"], one["model"], one["object"]) for one in chunks}) <= 1
    choices = [choice for one in chunks for choice in one["choices"]]
    parts = [
        choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") for choice in choices
    ]
    return Reply(
        status=response.status_code,
        headers=dict(response.headers),
        raw=response.text,
        text="".join(part or "" for part in parts),
        done=done or (not streamed and not error),
        model=chunks[-1]["model"] if chunks else "",
        usage=next((one["usage"] for one in chunks if one.get("usage")), None),
        error=error,
    )


class Log(logging.Handler):
    """The access log's lines by request id."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, dict[str, object]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__.get("fields", {})
        assert fields["request"] not in self.requests, "one line a request"
        self.requests[fields["request"]] = fields


@dataclass
class Lab:
    """`main` answers for the specialists, `spare` for the generalist."""

    url: str
    app: Edge
    main: Expert
    spare: Expert
    registry: Registry
    http: httpx2.Client
    joined: bool = True
    log: Log = field(default_factory=Log)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def body(self, text: str, model: str = "auto", **more: object) -> dict[str, object]:
        messages = [{"role": "user", "content": text}]
        return {"model": model, "temperature": 0, "messages": messages, **more}

    def ask(self, text: str, model: str = "auto", **more: object) -> Reply:
        """A chat request, whole or (`stream=True`) streamed."""
        return self.post("chat/completions", self.body(text, model, **more))

    def post(self, path: str, body: dict[str, object]) -> Reply:
        with self.http.stream("POST", f"{self.url}/v1/{path}", json=body) as response:
            for expert in (self.main, self.spare):
                expert.begun.add(response.headers["x-request-id"])
            response.read()
        return parsed(response)

    def right(self, text: str) -> str:
        """What the model says to this prompt at temperature 0."""
        return greedy(self.body(text))

    def settled(self) -> Log:
        """Wait until nothing is in flight, then check the ledger against the log and the experts' own logs."""
        until = time.monotonic() + _WAIT
        while self.app.ledger.in_flight or len(self.log.requests) < self.app.ledger.accepted:
            assert time.monotonic() < until, f"{self.app.ledger.in_flight} requests do not end"
            time.sleep(0.005)
        ledger = self.app.ledger
        assert ledger.balanced and ledger.accepted == ledger.ended.total() == len(self.log.requests)
        assert ledger.ended == Counter(fields["end"] for fields in self.log.requests.values())
        seen = Counter(attempt.id for expert in (self.main, self.spare) for attempt in expert.attempts)
        sent: Counter[str] = Counter()
        for request, fields in self.log.requests.items():
            attempts = fields["attempts"]
            assert isinstance(attempts, list)
            assert all(attempt["result"] for attempt in attempts)
            sent[request] = sum(attempt["result"] != "connect" for attempt in attempts)
        if self.joined:
            unlike = {*(seen - sent), *(sent - seen)}
            other = [(request, seen[request], self.log.requests.get(request)) for request in unlike]
            assert not other, f"the experts saw other attempts than the ledger: {other[:5]}"
        return self.log

    def attempts(self, reply: Reply) -> list[tuple[str, str]]:
        """Expert and result of each attempt of an answered request."""
        attempts = self.logged(reply)["attempts"]
        assert isinstance(attempts, list)
        return [(attempt["expert"], attempt["result"]) for attempt in attempts]

    def await_left(self, *attempts: Attempt) -> None:
        """Until the expert has seen that the edge left each of these."""
        until = time.monotonic() + _WAIT
        while not all(attempt.left for attempt in attempts):
            assert time.monotonic() < until, "the edge does not leave the expert"
            time.sleep(0.005)

    def logged(self, reply: Reply) -> dict[str, object]:
        """The access log's line about an answered request, whatever else is under way."""
        request, until = reply.headers["x-request-id"], time.monotonic() + _WAIT
        while request not in self.log.requests:
            assert time.monotonic() < until, f"{request} does not end"
            time.sleep(0.005)
        return self.log.requests[request]


def cards(main: str, spare: str) -> list[tuple[dict[str, object], str]]:
    """math: a remote URL; safe: one that may be sent a request twice; coding: an engine of ours; and a generalist."""
    remote = {"kind": "remote", "url": main, "model": "scripted"}
    engine = {"kind": "engine", "model": "m", "accelerator": "cpu", "memory_gb": 1}
    general = {**remote, "url": spare}
    return [
        ({"name": "math", "backend": remote, "domains": {"math": 0.9}, "admitted": ["math"]}, main),
        ({"name": "safe", "backend": {**remote, "retry_safe": True}}, main),
        ({"name": "coding", "backend": engine, "domains": {"coding": 0.9}, "admitted": ["coding"]}, main),
        ({"name": "general", "backend": general, "generalist": True}, spare),
    ]


@contextmanager
def laboratory(
    folder: Path, settings: EdgeSettings = QUICK, specialists: str | None = None, joined: bool = True
) -> Iterator[Lab]:
    """A running edge; `specialists` is the URL under which it knows them, where that is not `main`'s own.

    `joined` is False where attempts do not reach `main`, so that its log cannot be held against the ledger.
    """
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    access = logging.getLogger("collegium.access")
    access.setLevel(logging.INFO)
    with Expert() as main, Expert() as spare:
        for data, url in cards(specialists or main.url, spare.url):
            card = parse_card(data)
            registry.add(card)
            registry.observe(card.name, State.READY, base_url=url)
        app = create_app(settings, registry, KeywordRouter(), Sources("internal", {}))
        with served(app) as url, httpx2.Client(trust_env=False, timeout=60) as http:
            lab = Lab(url, app, main, spare, registry, http, joined)
            outer = access.handlers[:]  # another laboratory's, which must not see this one's requests
            access.handlers[:] = [lab.log]
            try:
                yield lab
                lab.settled()
            finally:
                access.handlers[:] = outer
    registry.close()
