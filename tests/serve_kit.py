"""A whole edge for tests: a registry on disk, a tiny real router, echo experts, uvicorn on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
from collegium.experts.card import Card, parse_card
from collegium.experts.registry import Registry, State
from collegium.router.decision import Policy
from collegium.router.posterior import Posterior
from collegium.serve.edge import create_app
from collegium.serve.gate import Edge
from collegium.serve.protocol import bounded_protocol
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import RoutingModel, Sources
from echo_expert import EchoExpert, served

WORDS = {
    "math": ("sum", "integral", "equation", "prime"),
    "coding": ("python", "function", "bug", "compile"),
    "general": ("hello", "thanks"),
}


@dataclass(frozen=True)
class KeywordRouter:
    """Counts keywords: enough of a classifier to route by, with a posterior that can be worked out by hand."""

    version: str = "keywords-1"
    threshold: float = 0.5
    words: dict[str, tuple[str, ...]] = field(default_factory=lambda: WORDS)

    def posterior(self, text: str) -> Posterior:
        lowered = text.lower()
        if lowered.startswith("explode"):
            raise ValueError(text)
        counts = [0.1 + 2 * sum(word in lowered for word in words) for words in self.words.values()]
        return Posterior(tuple(self.words), tuple(count / sum(counts) for count in counts), self.threshold)


def card(name: str, url: str, **changes: object) -> Card:
    """A remote card of an echo expert."""
    backend = {"kind": "remote", "url": url, "model": "echo"}
    data: dict[str, object] = {"name": name, "backend": backend, "capabilities": ["tools", "json_schema"], **changes}
    return parse_card(data)


def specialist(name: str, url: str, domain: str, **changes: object) -> Card:
    return card(name, url, domains={domain: 0.9}, admitted=[domain], **changes)


@dataclass
class Pool:
    """A registry whose experts are ready as soon as they are added."""

    registry: Registry

    def add(self, *cards: Card) -> None:
        for one in cards:
            self.registry.add(one)
            url = getattr(one.backend, "url", None)
            self.registry.observe(one.name, State.READY, base_url=url)


@dataclass(frozen=True)
class Running:
    """An edge that runs, with what stands behind it."""

    url: str
    pool: Pool
    echo: EchoExpert
    http: httpx2.Client
    app: Edge

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str, **options: object) -> httpx2.Response:
        return self.http.post(f"{self.url}{path}", **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx2.Response:
        return self.http.get(f"{self.url}{path}", **options)  # type: ignore[arg-type]

    def chat(self, text: str, model: str = "auto", **more: object) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", json=body)


@contextmanager
def running(
    folder: Path,
    settings: EdgeSettings | None = None,
    router: RoutingModel | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Running]:
    """An edge over a generalist and two specialists that all echo."""
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    with EchoExpert() as echo:
        pool = Pool(registry)
        pool.add(
            card("general", echo.url, generalist=True),
            specialist("math", echo.url, "math"),
            specialist("coding", echo.url, "coding"),
        )
        settings = settings or EdgeSettings(
            policy=Policy(), first_byte=5, between_events=5, total=20, breaker_failures=1000
        )
        sources = Sources("internal", environment or {})
        app = create_app(settings, registry, router or KeywordRouter(), sources)
        with served(app, bounded_protocol(settings)) as url, httpx2.Client(trust_env=False, timeout=60) as http:
            yield Running(url, pool, echo, http, app)
    registry.close()


def raw_answer(port: int, sent: bytes) -> bytes:
    """All that comes back for these bytes, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65_536):
            received += part
    return received
