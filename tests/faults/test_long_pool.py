"""A pool of thousands of experts, then one that changes all the time: `pytest -m slow tests/faults/test_long_pool.py`.

`--size 10000` experts.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from collegium.experts.registry import State
from faults.changes import expert, register
from faults.expert import Expert
from faults.load import ask
from faults.outside import HERE, Outside, outside, quantile
from faults.table import Table

_RATE, _SECONDS = 40.0, 10.0
_CHANGES = 100.0  # experts registered or removed a second
_ROUNDS = 3
_MOST = 30e3  # bytes of memory for one expert


@dataclass
class _Seen:
    """What came of requests to a pool of one kind: how they ended, and how long each took in seconds."""

    results: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_f10_thousands_of_experts_that_come_and_go(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_pools(tmp_path, seed, request.config.getoption("size") or 1000, capsys))


async def _pools(folder: Path, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    seen = {kind: _Seen() for kind in ("few", "many", "few, changing", "many, changing")}
    waits: list[float] = []
    rates: list[float] = []
    folders = [folder / name for name in ("few", "many")]
    for made in folders:
        made.mkdir()
    async with (
        outside(folders[0], Expert()) as few,
        outside(folders[1], Expert()) as many,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session,
    ):
        empty = many.process.memory_info().rss
        await _fill(few, 9, chance)
        await _fill(many, count, chance)
        memory = many.process.memory_info().rss - empty
        # In turns, so that what else the machine does meets all of them.
        for _ in range(_ROUNDS):
            for kind, edge in (("few", few), ("many", many)):
                await _load(session, edge, seen[kind], chance)
                async with _changing(edge, rates), _newcomers(edge, session, chance, waits if edge is many else []):
                    await _load(session, edge, seen[f"{kind}, changing"], chance)
        table = Table(
            f"{count} experts, {_RATE:g} requests/s, {min(rates):g} changes/s, seed {seed}",
            "pool", "requests", "p50 ms", "p99 ms",
        )  # fmt: skip
        for kind, one in seen.items():
            p50, p99 = (f"{1000 * quantile(one.times, share):.1f}" for share in (0.5, 0.99))
            table.row(kind, dict(one.results), p50, p99)
        table.show(
            capsys,
            f"memory for an expert: {memory / count / 1000:.1f} kB",
            f"a new expert can be asked after {quantile(waits, 0.5):.2f} s (median of {len(waits)}),"
            f" {max(waits):.2f} s at most",
        )
        for edge in (few, many):
            edge.check_ledger(await edge.idle())
        assert all(set(one.results) == {"right"} for one in seen.values())
        assert memory < count * _MOST


async def _fill(edge: Outside, count: int, chance: random.Random) -> None:
    """Register so many experts, and wait until the edge knows them all."""
    cards = [expert(f"e{number}", edge.expert.url, chance) for number in range(count)]
    await asyncio.to_thread(edge.registry.seed, cards)
    for one in cards:
        await asyncio.to_thread(edge.registry.observe, one.name, State.READY, base_url=edge.expert.url)
    async with aiohttp.ClientSession() as session:
        while len(await _listed(session, edge)) < count + 2:
            await asyncio.sleep(0.5)


async def _listed(session: aiohttp.ClientSession, edge: Outside) -> list[object]:
    async with session.get(f"{edge.url}/v1/models") as response:
        listed: list[object] = (await response.json())["data"]
    return listed


async def _load(session: aiohttp.ClientSession, edge: Outside, seen: _Seen, chance: random.Random) -> None:
    """Open loop: half by name, half to be routed."""

    async def one(number: int) -> None:
        began = time.monotonic()
        seen.results[await ask(session, edge.url, number, ("auto", f"e{number % 9}"), chance)] += 1
        seen.times.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        due, number = time.monotonic(), 0
        while number < _RATE * _SECONDS:
            due += chance.expovariate(_RATE)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            group.create_task(one(number))
            number += 1


@asynccontextmanager
async def _changing(edge: Outside, rates: list[float]) -> AsyncIterator[None]:
    """Experts come and go meanwhile; how many did a second is added to `rates`."""
    command = [sys.executable, str(HERE / "changes.py"), edge.registry_url, edge.expert.url, str(_CHANGES)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        yield
    finally:
        process.terminate()
        told, _ = await process.communicate()
    rates.append(float(told))


@asynccontextmanager
async def _newcomers(
    edge: Outside, session: aiohttp.ClientSession, chance: random.Random, waits: list[float]
) -> AsyncIterator[None]:
    """Now and then a new expert is waited for; how many seconds is added to `waits`."""

    async def wait() -> None:
        while True:
            name = f"n{time.monotonic_ns()}"
            card = expert(name, edge.expert.url, chance)
            await asyncio.to_thread(register, edge.registry, card, edge.expert.url)
            began = time.monotonic()
            while not await _is_listed(session, edge, name):
                await asyncio.sleep(0.01)
            waits.append(time.monotonic() - began)
            await asyncio.to_thread(edge.registry.remove, name)
            await asyncio.sleep(1.0)

    waiting = asyncio.create_task(wait())
    try:
        yield
    finally:
        waiting.cancel()


async def _is_listed(session: aiohttp.ClientSession, edge: Outside, name: str) -> bool:
    async with session.get(f"{edge.url}/v1/models/{name}") as response:
        return response.status == 200
