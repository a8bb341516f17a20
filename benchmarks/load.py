"""Load on several roads to the same answer, in turns: each connection one request after the other, or an open loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import aiohttp
import numpy as np
import psutil

Kind = Literal["direct", "edge", "peer"]
ROUNDS = 8
TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, slots=True)
class Road:
    """One way to the same answer; `processes` are those that the way costs."""

    name: str
    kind: Kind
    url: str
    model: str
    processes: tuple[psutil.Process, ...]
    stream: bool = False

    @property
    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)

    @property
    def mebibytes(self) -> float:
        return sum(process.memory_info().rss for process in self.processes) / 2**20


Burst = Callable[[aiohttp.ClientSession, Road, Sequence[str], int], Awaitable[list[float | None]]]


@dataclass(frozen=True, slots=True)
class Load:
    """A way of asking and its name."""

    title: str
    burst: Burst


@dataclass(frozen=True, slots=True)
class Result:
    """What one road did under one load; times in milliseconds, of requests that were answered."""

    load: str
    road: str
    kind: Kind
    stream: bool
    requests: int
    failed: int
    p50: float
    p90: float
    p99: float
    p999: float
    rate: float
    cpu: float


def closed(connections: int) -> Load:
    """So many connections, each of which asks again as soon as it has its answer."""
    plural = "" if connections == 1 else "s"
    return Load(f"{connections} connection{plural}", partial(_closed, connections))


def open_loop(rate: float) -> Load:
    """So many requests a second at random times, however long the answers take."""
    return Load(f"open loop, {rate:g} requests/s", partial(_open, rate))


@dataclass(slots=True)
class _Tally:
    times: list[float | None] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0


async def measure(load: Load, roads: Sequence[Road], prompts: Sequence[str], requests: int) -> list[Result]:
    """Rounds of the roads in turn, so that a slow moment of the machine hits all of them; the first is not counted."""
    tallies = [_Tally() for _ in roads]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT) as session:
        for turn in range(ROUNDS + 1):
            for road, tally in zip(roads, tallies, strict=True):
                started, before = time.perf_counter(), road.cpu_seconds
                times = await load.burst(session, road, prompts, max(requests // ROUNDS, 1))
                if turn:
                    tally.seconds += time.perf_counter() - started
                    tally.cpu += road.cpu_seconds - before
                    tally.times += times
    return [_result(load.title, road, tally) for road, tally in zip(roads, tallies, strict=True)]


def _result(load: str, road: Road, tally: _Tally) -> Result:
    times = [taken for taken in tally.times if taken is not None]
    count, failed = len(tally.times), len(tally.times) - len(times)
    quantiles = np.quantile(times, (0.5, 0.9, 0.99, 0.999)) if times else np.full(4, np.nan)
    p50, p90, p99, p999 = map(float, quantiles)
    rate, cpu = len(times) / tally.seconds, 1000 * tally.cpu / count
    return Result(load, road.name, road.kind, road.stream, count, failed, p50, p90, p99, p999, rate, cpu)


async def _closed(
    connections: int, session: aiohttp.ClientSession, road: Road, prompts: Sequence[str], requests: int
) -> list[float | None]:
    times: list[float | None] = []
    left = iter(range(requests))

    async def client() -> None:
        times.extend([await _ask(session, road, prompts[number % len(prompts)]) for number in left])

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


async def _open(
    rate: float, session: aiohttp.ClientSession, road: Road, prompts: Sequence[str], requests: int
) -> list[float | None]:
    """A request that the client itself is late with counts from when it was due."""
    chance, due, running = random.Random(requests), time.perf_counter(), []

    async def one(prompt: str, due: float) -> float | None:
        waited = 1000 * (time.perf_counter() - due)
        taken = await _ask(session, road, prompt)
        return None if taken is None else waited + taken

    for number in range(requests):
        due += chance.expovariate(rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        running.append(asyncio.create_task(one(prompts[number % len(prompts)], due)))
    return await asyncio.gather(*running)


async def _ask(session: aiohttp.ClientSession, road: Road, prompt: str) -> float | None:
    """Milliseconds to the whole answer, or to the first event of a stream; None where there was none."""
    started = time.perf_counter()
    try:
        async with session.post(road.url, json=body(road, prompt)) as response:
            if road.stream:
                await response.content.readany()
            else:
                await response.read()
            took = 1000 * (time.perf_counter() - started)
            await response.read()
            return took if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        return None


def body(road: Road, prompt: str) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": road.model, "messages": messages, "max_tokens": 2, "stream": road.stream}


async def wait_for_answer(road: Road, limit: float) -> bool:
    """Whether the road gives an answer to its model within `limit` seconds."""
    deadline = time.monotonic() + limit
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while time.monotonic() < deadline:
            if await _ask(session, road, "Yes?") is not None:
                return True
            await asyncio.sleep(0.2)
    return False
