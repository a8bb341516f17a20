"""The classifier in the edge: inline or in threads, the same route in any company, swapped under load."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from collegium.experts.registry import Registry, RouterRecord
from collegium.router.artefact import STARTER, Router, load_router
from collegium.router.classifier import About
from collegium.router.ngrams import NgramClassifier
from collegium.router.posterior import Posterior
from collegium.serve.classify import Classifier, NoPosterior
from collegium.serve.edge import create_app
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import RoutingModel, Sources
from echo_expert import EchoExpert, served
from router_kit import labelled
from serve_kit import WORDS, KeywordRouter, Pool, card, specialist

PROMPTS = Path(__file__).parent.parent / "training" / "prompts"
HOSTILE = (
    "",
    " ",
    "fail",
    "\ud800",
    "a" * 50_000,
    "日本" * 5_000,
    "\u0301" * 3_000,
    "[CLS] [SEP]",
    "\x00",
    "!?" * 9_000,
)


@dataclass(frozen=True)
class Reader:
    """Says in which thread it read; fails at the word, or keeps the processor busy so long."""

    inline: bool
    version: str = "reader-1"
    busy: float = 0.0
    threads: list[str] = field(default_factory=list)

    def posterior(self, text: str) -> Posterior:
        self.threads.append(threading.current_thread().name)
        if "fail" in text:
            raise KeyError(text)
        until = time.thread_time() + self.busy
        while time.thread_time() < until:
            pass
        return Posterior(("math", "general"), (0.9, 0.1))


def read(router: RoutingModel, texts: Sequence[str], threads: int = 2) -> list[Posterior | NoPosterior]:
    async def together() -> list[Posterior | NoPosterior]:
        classifier = Classifier(threads, queue=len(texts), budget=60)
        try:
            return await asyncio.gather(*(classifier.posterior(router, text) for text in texts))
        finally:
            classifier.close()

    return asyncio.run(together())


@pytest.mark.parametrize("inline", [True, False])
def test_a_quick_router_needs_no_thread_and_a_failure_is_its_own_prompts(inline: bool) -> None:
    router = Reader(inline)
    found = read(router, ["one", "please fail", "two"])
    assert [isinstance(one, NoPosterior) and one.code for one in found] == [False, "classifier_error", False]
    assert {name.startswith("classifier") for name in router.threads} == {not inline}


def test_a_router_that_is_not_quick_after_all_goes_to_the_threads() -> None:
    router = Reader(inline=True, busy=0.015)

    async def one_by_one() -> None:
        classifier = Classifier(1, queue=1, budget=60)
        for _ in range(5):
            assert isinstance(await classifier.posterior(router, "text"), Posterior)
        other = Reader(inline=True, version="reader-2")
        await classifier.posterior(other, "text")
        assert other.threads == ["MainThread"]
        classifier.close()

    asyncio.run(one_by_one())
    assert [name.startswith("classifier") for name in router.threads] == [False, False, False, True, True]


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    folder = Path(tmp_path_factory.mktemp("router")) / "r"
    texts, labels = [text for text, _ in labelled()], [label for _, label in labelled()]
    NgramClassifier().fit(texts, labels).save(folder, About(self_test=texts[:3]))
    return load_router(folder)


def company(chance: random.Random, count: int) -> list[str]:
    """Prompts of words from the training data, some of them hostile."""
    words = sorted({word for text, _ in labelled() for word in text.split()})
    plain = [" ".join(chance.choices(words, k=chance.randint(1, 30))) for _ in range(count)]
    return [chance.choice(HOSTILE) if chance.random() < 0.1 else text for text in plain]


def same_alone_and_together(router: Router, texts: Sequence[str], portion: int, alone: Router | None = None) -> None:
    for start in range(0, len(texts), portion):
        asked = texts[start : start + portion]
        for text, found in zip(asked, read(router, asked, threads=4), strict=True):
            if text.strip():
                assert found == (alone or router).posterior(text)
            else:
                assert isinstance(found, NoPosterior) and found.code == "low_confidence"


def test_a_route_is_the_same_alone_and_in_company(router: Router, seed: int) -> None:
    same_alone_and_together(router, company(random.Random(seed), 300), 100)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_100000_routes_of_the_starter_are_the_same_alone_and_in_company(request: pytest.FixtureRequest) -> None:
    """Real prompts, whole, cut and joined, among hostile ones; those alone are read by another copy of the router."""
    count, chance = request.config.getoption("size") or 100_000, random.Random(0)
    real = [json.loads(line)["text"] for line in (PROMPTS / "own.jsonl").read_text().splitlines()]
    together, alone = load_router(STARTER), load_router(STARTER)
    left = count
    while left > 0:
        texts = [
            text[chance.randrange(20) :] + chance.choice(("", " ", "\n", chance.choice(real)))
            for text in chance.choices(real, k=min(left, 500))
        ]
        asked = [chance.choice(HOSTILE) if chance.random() < 0.1 else text for text in texts]
        same_alone_and_together(together, asked, len(asked), alone)
        left -= len(asked)


SWAPPED = {"math": WORDS["coding"], "coding": WORDS["math"], "general": WORDS["general"]}


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[tuple[str, Registry]]:
    """An edge with two routers that send the same words to opposite experts: `even` as usual, `odd` the other way."""
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")

    def load(path: str) -> KeywordRouter:
        return KeywordRouter(version=path, words=SWAPPED if path.startswith("odd") else WORDS)

    with EchoExpert() as echo:
        Pool(registry).add(
            card("general", echo.url, generalist=True),
            specialist("math", echo.url, "math"),
            specialist("coding", echo.url, "coding"),
        )
        settings = EdgeSettings(classifier_budget=30)
        app = create_app(settings, registry, load("even-0"), Sources("internal", {}), load)
        with served(app) as url:
            yield url, registry
    registry.close()


def test_a_router_is_swapped_under_load_without_a_failed_or_mixed_request(swapping: tuple[str, Registry]) -> None:
    url, registry = swapping
    versions: set[str] = set()
    over = threading.Event()

    def client(number: int) -> int:
        asked = 0
        with httpx2.Client(trust_env=False, timeout=60) as http:
            while not over.is_set():
                messages = [{"role": "user", "content": f"the {'integral' if number % 2 else 'python bug'}"}]
                body = {"model": "auto", "messages": messages}
                answer = http.post(f"{url}/v1/chat/completions", json=body)
                assert answer.status_code == 200
                version = answer.headers["x-collegium-router"]
                straight = version.startswith("even") == bool(number % 2)
                assert answer.headers["x-collegium-expert"] == ("math" if straight else "coding")
                assert answer.headers["x-collegium-domain"] == answer.json()["model"]
                versions.add(version)
                asked += 1
        return asked

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            for turn in range(1, 6):
                name = f"{'odd' if turn % 2 else 'even'}-{turn}"
                registry.promote(RouterRecord(name, name))
                while name not in versions and not any(one.done() for one in clients):
                    time.sleep(0.01)
        finally:
            over.set()
        assert sum(one.result() for one in clients) >= 6
    assert len(versions) >= 5
