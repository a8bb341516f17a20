"""Days of mixed traffic at a running `collegium serve`: `pytest -m slow tests/faults/test_long_soak.py --minutes 60`.

A day is short: the rate rises and falls once. At night everything rests, the books are closed, and what the processes
hold is looked at. No engines of ours, so no Ray.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml
from collegium.experts.card import parse_card
from collegium.experts.ray_cluster import free_ports
from collegium.experts.registry import KeyScope, Registry
from collegium.experts.state import StateFolder
from faults.books import Books
from faults.expert import Expert
from faults.table import Table
from faults.traffic import Clients, misbehave
from faults.watch import INSIDE, Follower, Watch

_LOW, _HIGH = 2.0, 40.0  # requests a second, at night and at noon
_DAYS, _SHORTEST = 30, 10.0
_GLANCE = 5.0
_PATIENCE = 120.0
_REST = 7.0  # seconds; connections to experts are kept for 3, and given up within 3 more
_MODELS = ("math", "safe", "coding", "general")
_SECRET = "sk-soak-test"
_WORDS = 51_000
# Per cent by which memory may grow: so much an hour, and so much in all, below which it is not told from noise.
_GROWTH, _NOISE = 0.5, 5.0
# Pools of threads start one when none is free, and keep it.
_MORE = {"files": 0, "tasks": 0, "threads": 3}


def cards(urls: list[str]) -> list[dict[str, object]]:
    """Remote experts: one that is asked once, one safe to ask twice, one of two replicas, a generalist; and a guest."""
    first, second, third, fourth, fifth = urls
    backends: dict[str, dict[str, object]] = {
        "math": {"url": first},
        "safe": {"url": second, "retry_safe": True},
        "coding": {"urls": [third, fourth], "retry_safe": True, "continues": True},
        "general": {"url": fifth},
        "guest": {"url": fifth},
    }
    domains = {"math": "math", "safe": "humanities", "coding": "coding"}
    return [
        {
            "name": name,
            "backend": {"kind": "remote", "model": "scripted", **backend},
            "generalist": name == "general",
            "domains": {domains[name]: 0.9} if name in domains else {},
            "admitted": [domains[name]] if name in domains else [],
            "limits": {"first_token": 4, "between_tokens": 4, "total": 12},
        }
        for name, backend in backends.items()
    ]


@dataclass
class Served:
    """A running `collegium serve`."""

    state: StateFolder
    port: int
    registry: Registry
    watches: list[Watch]

    def followers(self) -> list[Follower]:
        """Of the workers' logs."""
        return [Follower(log) for log in sorted(self.state.logs.glob("edge-*.log"))]


@asynccontextmanager
async def served(folder: Path, pool: list[dict[str, object]]) -> AsyncIterator[Served]:
    """Two workers over a pool, ready, each process with a watch."""
    state, file, told = StateFolder(folder / "state"), folder / "pool.yaml", folder / "told"
    file.write_text(yaml.safe_dump(pool))
    told.mkdir()
    registry = Registry(state.registry_url)
    registry.add_key("soak", _SECRET, KeyScope(concurrent=10_000, requests_per_minute=10**6, tokens_per_minute=10**9))
    port, admin = free_ports(("public", "admin")).values()
    command = [sys.executable, "-m", "collegium.cli.main", "serve", str(file), "--state", str(state.path)]
    command += ["--port", str(port), "--admin-port", str(admin), "--workers", "2", "--allow-network", "127.0.0.1"]
    paths = os.pathsep.join(path for path in (str(INSIDE), os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "PYTHONPATH": paths, "COLLEGIUM_TEST_TOLD": str(told)}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        await _ready(port, process)
        yield Served(state, port, registry, list(_watches(process.pid, told)))
        assert process.poll() is None, "the supervisor ended"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE)
        registry.close()


async def _ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    async with httpx2.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{port}") as http:
        while True:
            try:
                if (await http.get("/readyz")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            assert time.monotonic() < until and process.poll() is None, "it does not become ready"
            await asyncio.sleep(0.2)


def _watches(supervisor: int, told: Path) -> Iterator[Watch]:
    process = psutil.Process(supervisor)
    yield Watch("supervisor", process, told)
    for child in process.children():
        words = " ".join(child.cmdline())
        if "serve.edge" in words:
            yield Watch(f"edge, worker {words.split('--worker ')[1].split()[0]}", child, told)
        elif "experts.reconciler" in words:
            yield Watch("reconciler", child, told)


@dataclass
class Soak:
    """The traffic of all days, and what is done at night."""

    served: Served
    clients: Clients
    books: Books
    chance: random.Random
    samples: Path
    number: int = 0

    async def begin(self) -> None:
        """Fill what fills once: each worker's router keeps the first 50,000 words that it meets, a list for each."""
        workers = [watch for watch in self.served.watches if watch.name.startswith("edge")]
        until = time.monotonic() + 4 * _PATIENCE
        while any([(await worker.ask())["objects"] < _WORDS for worker in workers]):
            assert time.monotonic() < until, "the routers' tables do not fill"
            async with self.clients.session() as http:
                texts = [" ".join(f"{self.chance.getrandbits(32):08x}" for _ in range(200)) for _ in range(32)]
                await asyncio.gather(*(self.clients.route(http, text) for text in texts))

    async def day(self, seconds: float, guest: dict[str, object]) -> None:
        """Requests go out at random times, however long the answers take; a guest expert is there for the day."""
        self.served.registry.add(parse_card(guest))
        async with self.clients.session() as http:
            running: set[asyncio.Task[None]] = set()
            began, at = time.monotonic(), 0.0
            while at < seconds:
                rate = _LOW + (_HIGH - _LOW) * (1 - math.cos(2 * math.pi * at / seconds)) / 2
                at += self.chance.expovariate(rate)
                await asyncio.sleep(max(began + at - time.monotonic(), 0))
                self.number += 1
                task = asyncio.create_task(self.clients.visit(http, self.number))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)

    async def night(self) -> None:
        """Without the guest and with all experts well, wait until connections to them are given up; count and look."""
        self.served.registry.remove("guest")
        until = time.monotonic() + _PATIENCE
        async with self.clients.session() as http:
            while not all(await asyncio.gather(*(self._well(http, model) for model in _MODELS * 6))):
                assert time.monotonic() < until, "an expert does not recover"
                await asyncio.sleep(0.5)
        while len(self.served.registry.experts()) > len(_MODELS):
            assert time.monotonic() < until, "the guest does not go"
            await asyncio.sleep(0.1)
        await asyncio.sleep(_REST)
        async with self.clients.session() as http:
            await self.books.close(http)
        await asyncio.sleep(0.5)
        for watch in self.served.watches:
            sample = await watch.look()
            with self.samples.open("a") as file:
                print(json.dumps({"process": watch.name, "sent": self.clients.sent, **asdict(sample)}), file=file)

    async def _well(self, http: httpx2.AsyncClient, model: str) -> bool:
        self.number += 1
        return await self.clients.ask(http, f"well-{self.number}", model)

    async def glance(self) -> None:
        while True:
            await asyncio.sleep(_GLANCE)
            self.books.read()
            for watch in self.served.watches:
                watch.glance()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_g12_days_of_mixed_faults_leave_nothing_behind(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_soak(tmp_path, seed, 60 * request.config.getoption("minutes"), capsys))


async def _soak(folder: Path, seed: int, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    experts = [Expert(seed=number, pace=0.004, always=misbehave) for number in range(5)]
    for expert in experts:
        await expert.start()
    *pool, guest = cards([expert.url for expert in experts])
    day = max(seconds / _DAYS, _SHORTEST)
    began = time.monotonic()
    async with served(folder, pool) as running:
        clients = Clients(running.port, experts, ("auto", "auto", *_MODELS, "guest"), _SECRET, chance)
        soak = Soak(running, clients, Books(clients, experts, running.followers()), chance, folder / "samples.jsonl")
        await soak.begin()
        glances = asyncio.create_task(soak.glance())
        for _ in range(max(math.ceil(seconds / day), 4)):
            await soak.day(day, guest)
            await soak.night()
            assert not glances.done(), glances.exception()
        glances.cancel()
    for expert in experts:
        await expert.stop()
    _tell(soak, f"{time.monotonic() - began:.0f} s, days of {day:.0f} s, seed {seed}", capsys)
    assert not clients.wrong, clients.wrong[:5]
    assert clients.results["right"] > sum(count for what, count in clients.results.items() if ":" in what)
    for watch in running.watches:
        _check(watch)


def _tell(soak: Soak, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    clients = soak.clients
    table = Table(f"{clients.sent} requests, {title}", "what came of them", "count")
    for what, count in clients.results.most_common():
        table.row(what, count)
    table.show(capsys, f"ledger: {dict(soak.books.ended)}, {soak.books.lost} lines lost where a log was cut")
    table = Table(
        "At night, after the first third and at last; most is of the day",
        "process", "MiB of its own, most", "% an hour", "Python's blocks", "% an hour", "files, most", "threads, most",
        "tasks",
    )  # fmt: skip
    for watch in soak.served.watches:
        first, last = watch.settled[0], watch.settled[-1]
        table.row(
            watch.name,
            f"{first.own:.1f}, {last.own:.1f}, {watch.most_own:.1f}",
            watch.slope(),
            f"{first.blocks}, {last.blocks}",
            watch.slope("blocks"),
            f"{first.files}, {last.files}, {watch.most_files}",
            f"{first.threads}, {last.threads}, {watch.most_threads}",
            f"{first.tasks}, {last.tasks}",
        )
    table.show(capsys)


def _check(watch: Watch) -> None:
    """Nothing is left behind: no file, no thread, no task, and no more memory than can be told from noise."""
    half = len(watch.settled) // 2
    for what, more in _MORE.items():
        before, after = (
            statistics.median_low(getattr(sample, what) for sample in samples)
            for samples in (watch.settled[:half], watch.settled[half:])
        )
        assert after <= before + more, f"{watch.name}: {before} {what}, then {after}"
    hours = watch.settled[-1].hours - watch.settled[0].hours
    assert watch.slope().high < _GROWTH + _NOISE / hours, f"{watch.name}: {watch.slope()} % an hour"
