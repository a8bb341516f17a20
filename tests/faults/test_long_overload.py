"""Twenty times more requests than fit: `pytest -m slow tests/faults/test_long_overload.py -s --size 60` (seconds)."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from faults import behaviours as do
from faults.expert import Expert
from faults.outside import outside, quantile
from faults.table import Table

_PLACES, _WORK = 1, 0.5  # 2 answers a second: what limits is the expert, not this machine
_TIMES = 20


@dataclass
class Asked:
    """What came of the requests of one phase, and when."""

    url: str
    session: aiohttp.ClientSession
    codes: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    async def once(self) -> float:
        body = {"model": "auto", "messages": [{"role": "user", "content": "a sum"}], "max_tokens": 4}
        began = time.monotonic()
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            told = await response.json()
        took = time.monotonic() - began
        self.codes["answered" if response.status == 200 else told["error"]["code"]] += 1
        if response.status == 200:
            self.answered.append(began + took)
        else:
            assert response.status == 503 and int(response.headers["retry-after"]) > 0
            self.refused.append(took)
        return took

    async def closed_loop(self, seconds: float) -> float:
        """Answers a second with all places busy."""
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await self.once()

        await asyncio.gather(*(client() for _ in range(_PLACES)))
        return len(self.answered) / (max(self.answered) - until + seconds)

    async def open_loop(self, rate: float, seconds: float, chance: random.Random) -> set[asyncio.Task[float]]:
        due = time.monotonic()
        until, running = due + seconds, set()
        while due < until:
            due += chance.expovariate(rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            running.add(asyncio.create_task(self.once()))
        return running


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_overload(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_overload(tmp_path, seed, request.config.getoption("size") or 20, capsys))


async def _overload(folder: Path, seed: int, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    expert = Expert(always=do.late(_WORK))
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        outside(folder, expert, limits={"concurrency": _PLACES}) as edge,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        before = Asked(edge.url, session)
        await before.once()
        usual = await before.once()
        peak = await before.closed_loop(seconds / 4)
        during = Asked(edge.url, session)
        began = time.monotonic()
        running = await during.open_loop(_TIMES * peak, seconds, random.Random(seed))
        ended = time.monotonic()
        goodput = sum(began + 1 < moment <= ended for moment in during.answered) / (ended - began - 1)
        after = Asked(edge.url, session)
        while await after.once() > 2 * usual or not after.answered:
            await asyncio.sleep(0.1)
        recovered = time.monotonic() - ended
        await asyncio.gather(*running)
        told = await edge.idle()
        totals = edge.check_ledger(told)
        table = Table(f"{_TIMES} times too many requests for {seconds} s, seed {seed}", "what", "value")
        table.row("answers a second with all places busy", f"{peak:.1f}")
        table.row("offered a second", f"{len(running) / (ended - began):.0f}")
        table.row("answers a second meanwhile, of that", f"{goodput:.1f} ({goodput / peak:.0%})")
        for code, count in during.codes.items():
            table.row(code, count)
        for share in (0.5, 0.99, 1.0):
            table.row(f"refused after, p{share * 100:g}", f"{1000 * quantile(during.refused, share):.1f} ms")
        table.row("as before again after", f"{recovered:.1f} s")
        table.show(capsys, f"ledger: {dict(totals)}")
        assert set(totals) <= {"completed", "refused"}
        assert set(during.codes) == {"answered", "server_is_overloaded"}
