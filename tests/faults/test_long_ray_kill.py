"""Real engines, all around them killed in turn: `pytest -m "slow and ray" tests/faults/test_long_ray_kill.py`.

`--size` is the number of kills, `--first-seed` begins another series. One expert whose vLLM engine has two replicas on
Ray, under a light load of short greedy answers. Each round kills every kind of process once, in an order by the seed; a
kill waits until answers came again after the one before. Takes 10 GB of memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml
from collegium.experts.ray_cluster import RayCluster, free_ports
from collegium.experts.state import StateFolder
from faults.outside import quantile
from faults.table import Table
from ray_kit import MARKS, START_LIMIT
from ray_victims import ON_RAY, OURS, SUPERVISOR, victims
from test_ray_continuation import PROMPTS, two_replicas
from whole_kit import Serving

pytestmark = [mark for mark in MARKS if mark.name != "timeout"]
_RATE = 2.0  # requests a second
_TOKENS = (2, 6, 16)
_PATIENCE = 400.0  # seconds for one answer: an engine's start on a busy machine is waited for
_KINDS = (*OURS, *ON_RAY, SUPERVISOR)
# What a killed process of ours holds is lost with it; the client sees the connection's end.
_LOST = {"edge worker", SUPERVISOR}


@dataclass(frozen=True)
class Ask:
    """A request by its number; its answer is known from before the kills."""

    number: int
    prompt: str
    tokens: int

    @property
    def body(self) -> dict[str, object]:
        messages = [{"role": "user", "content": self.prompt}]
        streams = self.number % 2 == 0
        return {
            "model": "general",
            "temperature": 0,
            "messages": messages,
            "max_tokens": self.tokens,
            "stream": streams,
        }


@dataclass
class Series:
    """A running `collegium serve`, what was killed and what clients got, by the kill before their end."""

    serving: Serving
    session: aiohttp.ClientSession
    right: dict[tuple[str, int], str] = field(default_factory=dict)
    results: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    recovery: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    longest: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    kills: list[tuple[float, str]] = field(default_factory=list)
    answered: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.serving.base}/v1/chat/completions"

    @property
    def now(self) -> str:
        return self.kills[-1][1] if self.kills else "before"

    async def learn(self) -> None:
        """The undisturbed answers."""
        for prompt in PROMPTS:
            for tokens in _TOKENS:
                async with self.session.post(self.url, json=Ask(1, prompt, tokens).body) as response:
                    self.right[prompt, tokens] = json.loads(await response.text())["choices"][0]["message"]["content"]

    async def ask(self, ask: Ask) -> None:
        began, request, first = time.monotonic(), "", False
        try:
            async with self.session.post(self.url, json=ask.body) as response:
                request, first = response.headers.get("x-request-id", ""), True
                raw = await response.text()
            # An edge that ends with its supervisor has uvicorn answer for requests that it had not begun to answer.
            result = self.judged(ask, response.status, raw) if request else "connection ended by a bare 500"
        except aiohttp.ClientConnectorError:
            result = "could not connect"
        except aiohttp.ClientError:
            result = "connection lost under way" if first else "connection lost before the first byte"
        except TimeoutError:
            result = "HANG"
        if result.startswith("co") and not any(kind in _LOST for moment, kind in self.kills if moment >= began - 30):
            result += " WITHOUT A KILL"
        self.results[self.now][result] += 1
        self.longest[self.now] = max(self.longest[self.now], time.monotonic() - began)
        if request:
            self.answered[request] = result

    def judged(self, ask: Ask, status: int, raw: str) -> str:
        if status != 200:
            return f"error {json.loads(raw)['error']['code']}"
        right = self.right[ask.prompt, ask.tokens]
        if not ask.body["stream"]:
            return "right" if json.loads(raw)["choices"][0]["message"]["content"] == right else "WRONG"
        events = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
        said = "".join(choice["delta"].get("content") or "" for one in events for choice in one.get("choices", []))
        if raw.endswith("data: [DONE]\n\n"):
            return "right" if said == right else "WRONG"
        return f"error event {events[-1]['error']['code']}" if "error" in events[-1] else "CUT"

    async def load(self, stop: asyncio.Event, chance: random.Random) -> None:
        """Open loop: requests go out at random times, however long the answers take."""
        running: set[asyncio.Task[None]] = set()
        due, number = time.monotonic(), 0
        while not stop.is_set():
            due += chance.expovariate(_RATE)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            ask = Ask(number, chance.choice(PROMPTS), chance.choice(_TOKENS))
            running.add(asyncio.create_task(self.ask(ask)))
            number += 1
        await asyncio.gather(*running)

    async def kill(self, kind: str, chance: random.Random) -> None:
        """Kill one process of the kind, and wait until an answer begun after it has come."""
        while not (found := await asyncio.to_thread(victims, self.serving, kind)):
            await asyncio.sleep(0.5)
        began = time.monotonic()
        self.kills.append((began, kind))
        with suppress(psutil.NoSuchProcess):
            chance.choice(found).kill()
        if kind == SUPERVISOR:
            await asyncio.to_thread(self.serving.process.wait)
            self.serving.start()
        while not await self.answers():
            await asyncio.sleep(0.1)
        self.recovery[kind].append(time.monotonic() - began)

    async def answers(self) -> bool:
        """Whether a new connection gets an answer; it is none of the counted requests."""
        try:
            async with self.session.post(self.url, json=Ask(1, "Hello", 1).body) as response:
                await response.read()
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def logged(self) -> dict[str, str]:
        """How each request ended, by the edge's log."""
        found: dict[str, str] = {}
        for log in (self.serving.folder / "logs").glob("edge-*.log*"):
            for line in map(json.loads, log.read_text().splitlines()):
                if "request" in line:
                    assert line["request"] not in found, "one line a request"
                    found[line["request"]] = line["end"]
        return found


def order(count: int, chance: random.Random) -> Iterator[str]:
    """So many kinds to kill, each once a round."""
    kinds: list[str] = []
    for _ in range(count):
        if not kinds:
            kinds = list(_KINDS)
            chance.shuffle(kinds)
        yield kinds.pop()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_kill_9_of_everything_around_an_engine(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_series(tmp_path, seed, request.config.getoption("size") or len(_KINDS), capsys))


async def _series(folder: Path, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump([two_replicas()]))
    port, admin_port = free_ports(("public", "admin")).values()
    serving = Serving(folder / "state", port, admin_port, dict(os.environ), str(pool))
    serving.start()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # a kept connection may be closed under a request
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.to_thread(serving.wait_ready, START_LIMIT)
            series = Series(serving, session)
            await series.learn()
            stop, chance = asyncio.Event(), random.Random(seed)
            load = asyncio.create_task(series.load(stop, random.Random(seed)))
            began = time.monotonic()
            for kind in order(count, chance):
                await asyncio.sleep(chance.uniform(0.5, 3.0))
                await series.kill(kind, chance)
            stop.set()
            await load
            seconds = time.monotonic() - began
    finally:
        try:
            serving.stop(120)
        finally:
            RayCluster(StateFolder(serving.folder)).stop()
    _show(series, f"{count} kills, seed {seed}, {_RATE:g} requests/s, {seconds:.0f} s", capsys)
    _check(series)


def _show(series: Series, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(
        title, "killed", "kills", "answers again after: median", "longest", "longest answer", "what clients got"
    )
    killed = Counter(kind for _, kind in series.kills)
    for kind in ("before", *_KINDS):
        if kind not in killed and kind not in series.results:
            continue
        times = series.recovery[kind] or [0.0]
        got = ", ".join(f"{what} {number}" for what, number in series.results[kind].most_common())
        waits = [f"{seconds:.1f} s" for seconds in (quantile(times, 0.5), max(times), series.longest[kind])]
        table.row(kind, killed[kind], *waits, got)
    table.show(capsys, f"ends in the workers' ledgers: {dict(Counter(series.logged().values()))}")


def _check(series: Series) -> None:
    total: Counter[str] = Counter()
    for results in series.results.values():
        total += results
    # None is wrong, cut without a word or lost; before its first byte one fails only with the process that held it.
    for what in total:
        refused = what.startswith("error ") and not what.startswith("error event")
        assert not (what.isupper() or "WITHOUT" in what or refused), total
    logged = series.logged()
    for request, result in series.answered.items():
        if result == "right":
            assert logged[request] == "completed"
        elif result.startswith("error event"):
            assert logged[request] == "failed_mid_stream"
