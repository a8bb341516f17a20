"""A running `collegium serve`, its processes killed: `pytest -m slow tests/faults/test_long_kill.py --size 100`.

Two edge workers under load; one kill in five hits the reconciler. No engines of ours, so no Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml
from collegium.experts.ray_cluster import free_ports
from collegium.experts.registry import KeyScope, Registry
from collegium.experts.state import StateFolder
from collegium.serve.counters import FILE, WORKERS, Counters
from faults.engine import greedy
from faults.expert import Expert
from faults.outside import quantile
from faults.table import Table

_RATE = 25.0
_SECRET = "sk-kill-test"
_JUST_NOW = 2.0  # seconds


@dataclass
class Served:
    """A supervisor, what it started, and what clients got."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    session: aiohttp.ClientSession
    results: Counter[str] = field(default_factory=Counter)
    answered: dict[str, tuple[str, float]] = field(default_factory=dict)  # what came, and when
    kills: list[float] = field(default_factory=list)
    early: int = 0  # workers killed before they listened
    times: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def children(self, module: str) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [child for child in found if any(module in part for part in _command(child))]

    async def ready(self) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                async with self.session.get(f"{self.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < until and self.process.poll() is None
            await asyncio.sleep(0.1)

    async def ask(self, number: int, chance: random.Random) -> None:
        """One request on a connection of its own; a reset is borne where a worker was killed meanwhile."""
        text = f"k{number} {chance.choice((4, 20, 60))} tokens"
        messages = [{"role": "user", "content": text}]
        body = {"model": "auto", "temperature": 0, "messages": messages, "stream": number % 2 == 0}
        began, request, first = time.monotonic(), "", False
        try:
            async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
                request, first = response.headers["x-request-id"], True
                raw = await response.text()
            result = _judged(response.status, raw, body)
        except aiohttp.ClientConnectorError:
            result = "could not connect"
        except aiohttp.ClientError:
            killed = any(began <= moment for moment in self.kills)
            when = "under way" if first else "before the first byte"
            result = f"connection lost {when}" if killed else "connection lost without a kill"
        self.results[result] += 1
        self.times.append(time.monotonic() - began)
        if request:
            self.answered[request] = (result, time.monotonic())

    async def load(self, stop: asyncio.Event, chance: random.Random) -> None:
        running = set()
        due, number = time.monotonic(), 0
        while not stop.is_set():
            due += chance.expovariate(_RATE)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            running.add(asyncio.create_task(self.ask(number, chance)))
            number += 1
        await asyncio.gather(*running)

    async def kill(self, count: int, chance: random.Random) -> Counter[str]:
        """Mostly when both workers serve, now and then while one is still starting."""
        killed: Counter[str] = Counter()
        while killed.total() < count:
            await asyncio.sleep(chance.uniform(0, 1))
            if chance.random() < 0.9:
                while self.starts() < 2 + killed["serve.edge"]:
                    await asyncio.sleep(0.2)
            module = "reconciler" if chance.random() < 0.2 else "serve.edge"
            victims = self.children(module)
            if victims:
                before = self.starts()
                self.kills.append(time.monotonic())
                chance.choice(victims).kill()
                killed[module] += 1
                listening = 2 + killed["serve.edge"] - 1
                self.early += module == "serve.edge" and before < listening
        return killed

    def starts(self) -> int:
        """How many workers have begun to listen so far; one that is killed before it did leaves none behind it."""
        logs = (self.folder / "logs").glob("edge-*.log*")
        return sum(log.read_text().count("the edge listens on") for log in logs) + self.early

    def logged(self) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for log in (self.folder / "logs").glob("edge-*.log*"):
            for raw in log.read_text().splitlines():
                line = json.loads(raw)
                if "request" in line:
                    assert line["request"] not in found, "one line a request"
                    found[line["request"]] = line
        return found


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _judged(status: int, raw: str, body: dict[str, object]) -> str:
    if status != 200:
        return f"error {json.loads(raw)['error']['code']}"
    if not body["stream"]:
        said = json.loads(raw)["choices"][0]["message"]["content"]
        return "right" if said == greedy(body) else "WRONG"
    events = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content", "") for one in events for choice in one.get("choices", []))
    if raw.endswith("data: [DONE]\n\n"):
        return "right" if said == greedy(body) else "WRONG"
    return f"error event {events[-1]['error']['code']}" if "error" in events[-1] else "CUT"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_kill_9_in_series(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_kill(tmp_path, seed, request.config.getoption("size") or 20, capsys))


async def _kill(folder: Path, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    expert = Expert(pace=0.005)
    await expert.start()
    state = StateFolder(folder / "state")
    backend = {"kind": "remote", "url": expert.url, "model": "scripted"}
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump([{"name": "only", "generalist": True, "backend": backend}]))
    registry = Registry(state.registry_url)
    registry.add_key("load", _SECRET, KeyScope(concurrent=10_000))
    port, admin = free_ports(("public", "admin")).values()
    command = [sys.executable, "-m", "collegium.cli.main", "serve", str(pool), "--state", str(state.path)]
    command += ["--port", str(port), "--admin-port", str(admin), "--workers", "2", "--allow-network", "127.0.0.1"]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"authorization": f"Bearer {_SECRET}"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        with (folder / "serve.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        served = Served(state.path, port, process, session)
        try:
            await served.ready()
            stop = asyncio.Event()
            load = asyncio.create_task(served.load(stop, chance))
            began = time.monotonic()
            killed = await served.kill(count, random.Random(seed))
            seconds = time.monotonic() - began
            stop.set()
            await load
            await served.ready()
            counters, until = Counters(state.path / FILE, worker=WORKERS - 1), time.monotonic() + 60
            while held := counters.running("load"):  # until the successors have started
                assert time.monotonic() < until, f"{held} requests of the dead still count"
                await asyncio.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    await expert.stop()
    registry.close()
    table = Table(f"{count} kills, seed {seed}, {_RATE:.0f} requests/s, {seconds:.0f} s", "what", "count")
    for what, number in [*killed.items(), *served.results.most_common()]:
        table.row(what, number)
    for share in (0.5, 0.99, 1.0):
        table.row(f"answered after, p{share * 100:g}", f"{quantile(served.times, share):.2f} s")
    logged = served.logged()
    table.show(capsys, f"{len(logged)} requests in the workers' ledgers: {Counter(x['end'] for x in logged.values())}")
    never = {"WRONG", "CUT", "could not connect", "connection lost without a kill"}
    assert not never & set(served.results), served.results
    # What else fails says so, and that it may be asked again: a busy machine has too few places, or late connections.
    told = {name for name in served.results if name.startswith("error")}
    assert told <= {"error server_is_overloaded", "error no_healthy_expert"}, served.results
    for request, (result, ended) in served.answered.items():
        if request not in logged:  # its worker was killed between the answer's last byte and the line
            assert any(abs(moment - ended) < _JUST_NOW for moment in served.kills), request
        else:
            assert result != "right" or logged[request]["end"] == "completed"
