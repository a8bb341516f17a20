"""Base and LoRA adapters on one real engine: they come and go while it answers, and come back after a crash."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from collegium.experts.adapter import PACKAGE, shipped_adapters
from collegium.experts.card import Card, parse_card
from collegium.experts.client import ExpertClient, ExpertError
from collegium.experts.pool import load_pool
from collegium.experts.processes import marked
from collegium.experts.registry import State
from collegium.experts.state import engine_key
from ray_kit import MARKS, Pool, ready, running

pytestmark = MARKS
MEMORY_GB = 6.0
ASKED = [{"role": "user", "content": "What do plants take from the air to make sugar?"}]
KNOWN = "Question: What do plants take from the air to make sugar?\nAnswer: carbon dioxide"


def card(name: str, adapter: object = None) -> Card:
    backend = {"kind": "adapter", "engine": "general", "adapter": str(adapter or PACKAGE + name)}
    return parse_card({"name": name, "backend": backend})


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    base = next(one for one in load_pool("demo") if one.name == "general")
    first = [card(name) for name in shipped_adapters() if name != "smollm2-math"]
    with running(tmp_path_factory.mktemp("ray") / "state", [base, *first]) as pool:
        for one in first:
            pool.wait(one.name, ready)
        yield pool


def reach(pool: Pool, name: str) -> tuple[ExpertClient, str]:
    """A client of the expert's engine, and the expert's name there."""
    url, _, model = (pool.wait(name, ready).base_url or "").partition("#")
    return ExpertClient(url, engine_key(pool.state.internal_key(), "general"), timeout=300), model or name


class Stream:
    """A long answer, read in a thread; `gap` is the longest time without a piece."""

    def __init__(self, pool: Pool, name: str, tokens: int) -> None:
        self.pieces: list[float] = []
        self.error: ExpertError | None = None
        self._client, self._model = reach(pool, name)
        self._tokens = tokens
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            options = {"max_tokens": self._tokens, "ignore_eos": True, "temperature": 0}
            for _ in self._client.stream_chat(self._model, ASKED, **options):
                self.pieces.append(time.monotonic())
        except ExpertError as error:
            self.error = error

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def started(self) -> None:
        while self.runs and not self.pieces:
            time.sleep(0.01)

    def finish(self) -> float:
        """Wait for its end; the longest gap in seconds."""
        self._thread.join(600)
        assert self.error is None and not self.runs, self.error
        return max(after - before for before, after in zip(self.pieces, self.pieces[1:], strict=False))


def test_base_and_adapters_answer_each_in_its_own_way(pool: Pool) -> None:
    """A science specialist finds a right answer of its domain likelier than its base does."""

    def likelihood(name: str) -> float:
        client, model = reach(pool, name)
        body = {"model": model, "prompt": KNOWN, "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
        headers = {"authorization": f"Bearer {engine_key(pool.state.internal_key(), 'general')}"}
        answer = httpx2.post(f"{client.base_url}/completions", json=body, headers=headers, timeout=300, trust_env=False)
        values: list[float | None] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
        return math.fsum(value for value in values[:-1] if value is not None)

    values = {name: likelihood(name) for name in ("general", "smollm2-science", "smollm2-coding")}
    assert len(set(values.values())) == 3
    assert values["smollm2-science"] > values["general"] + 0.3  # nats; 1.0 measured


def test_prompts_scored_together(pool: Pool) -> None:
    """Log-probabilities of several prompts at once, with the output layer adapted, ended the engine."""
    engines = pool.engines()

    def score(name: str) -> int:
        client, model = reach(pool, name)
        body = {"model": model, "prompt": KNOWN * 5, "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
        headers = {"authorization": f"Bearer {engine_key(pool.state.internal_key(), 'general')}"}
        url = f"{client.base_url}/completions"
        return httpx2.post(url, json=body, headers=headers, timeout=300, trust_env=False).status_code

    names = ["general", "smollm2-science", "smollm2-coding", "general"] * 3
    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(score, names)) == {200}
    assert pool.engines() == engines


def test_one_is_added_while_another_streams(pool: Pool) -> None:
    """No restart, no broken stream; the time printed is from the registry's row to the row that says ready."""
    engines = pool.engines()
    stream = Stream(pool, "general", 800)
    stream.started()
    begun = time.monotonic()
    pool.registry.add(card("smollm2-math"))
    pool.wait("smollm2-math", ready)
    seconds = time.monotonic() - begun
    assert stream.runs
    client, model = reach(pool, "smollm2-math")
    assert client.chat(model, ASKED, max_tokens=4)
    gap = stream.finish()
    assert len(stream.pieces) > 600 and pool.engines() == engines
    print(f"\nadding an adapter took {seconds:.2f} s; the longest gap of the stream beside it was {gap:.2f} s")


def test_memory_of_the_base_with_its_adapters(pool: Pool) -> None:
    held = {process.pid: process.memory_info() for process in marked(pool.cluster.mark)}
    engine = [
        p for p in marked(pool.cluster.mark) if any(part in _command(p) for part in ("LLMServer", "VLLM", "EngineCore"))
    ]
    resident = sum(held[p.pid].rss for p in engine if p.pid in held) / 2**30
    private = sum(p.memory_full_info().uss for p in engine) / 2**30
    adapters = len(shipped_adapters())
    print(f"\nbase and {adapters} adapters: {resident:.2f} GB resident, {private:.2f} GB unshared, in {len(engine)}")
    assert len(engine) >= 3 and resident < MEMORY_GB


def test_without_the_key_nothing_is_loaded_by_any_path(pool: Pool) -> None:
    root = (pool.registry.expert("general").base_url or "").removesuffix("/v1")
    body = {"lora_name": "mine", "lora_path": "/tmp", "name": "mine", "src": "/tmp"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations"):
        assert httpx2.post(root + path, json=body, timeout=60, trust_env=False).status_code == 401


def test_a_corrupt_adapter_is_refused_and_disturbs_nobody(pool: Pool, tmp_path: Path) -> None:
    source = Path(reach_staged(pool, "smollm2-science"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: -1000 if file.suffix == ".safetensors" else None])
    engines = pool.engines()
    pool.registry.add(card("broken", tmp_path))
    failed = pool.wait("broken", lambda record: record.state is State.FAILED)
    assert "no whole safetensors file" in failed.reason and failed.base_url is None
    assert pool.engines() == engines and ready(pool.registry.expert("smollm2-science"))
    pool.registry.remove("broken")
    until_gone(pool, "broken")


def test_adapters_are_back_after_the_replica_was_killed(pool: Pool) -> None:
    names = shipped_adapters()
    before = {name: pool.wait(name, ready).base_url for name in names}
    (replica,) = [process for process in marked(pool.cluster.mark) if "LLMServer" in _command(process)]
    replica.kill()
    begun = time.monotonic()
    while pool.registry.expert("general").state is State.READY:
        assert time.monotonic() - begun < 300, "nobody noticed"
        time.sleep(0.1)
    for name in names:
        assert pool.wait(name, ready).base_url == before[name]
        client, model = reach(pool, name)
        assert client.chat(model, ASKED, max_tokens=4)
    print(f"\nall adapters answered again {time.monotonic() - begun:.0f} s after the replica was killed")


def test_a_removed_adapter_finishes_its_stream_first(pool: Pool) -> None:
    client, model = reach(pool, "smollm2-math")
    stream = Stream(pool, "smollm2-math", 300)
    stream.started()
    pool.registry.remove("smollm2-math")
    time.sleep(4)
    assert stream.runs and model in client.models() and pool.registry.expert("smollm2-math").removed
    stream.finish()
    assert len(stream.pieces) > 200
    until_gone(pool, "smollm2-math")
    assert model not in client.models() and "general" in client.models()
    client, model = reach(pool, "smollm2-science")
    assert client.chat(model, ASKED, max_tokens=4)


def until_gone(pool: Pool, name: str) -> None:
    deadline = time.monotonic() + 120
    while any(record.name == name for record in pool.registry.experts()):
        assert time.monotonic() < deadline, pool.tell(pool.registry.expert(name))
        time.sleep(0.1)


def reach_staged(pool: Pool, name: str) -> Path:
    return pool.state.path / "adapters" / reach(pool, name)[1]


def _command(process: psutil.Process) -> str:
    try:
        return process.name() + " ".join(process.cmdline())
    except psutil.Error:
        return ""
