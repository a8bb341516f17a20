"""Very many streams at once: `pytest -m slow tests/faults/test_long_streams.py --size 2000`."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from faults import behaviours as do
from faults.engine import greedy
from faults.expert import Expert
from faults.outside import outside
from faults.table import Table

_TOKENS, _PAUSE, _OPENING = 14, 10.0, 75.0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_streams_at_once(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_streams(tmp_path, seed, request.config.getoption("size") or 200, capsys))


async def _streams(folder: Path, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    results: Counter[str] = Counter()
    most, memory = 0, 0.0
    connector, patience = aiohttp.TCPConnector(limit=0, force_close=True), aiohttp.ClientTimeout(600)
    async with (
        outside(folder, Expert(always=do.unhurried(_PAUSE)), limits={"concurrency": 2 * count}) as edge,
        aiohttp.ClientSession(connector=connector, timeout=patience) as session,
    ):

        async def stream(number: int) -> None:
            await asyncio.sleep(chance.uniform(0, _OPENING))
            text = f"s{number} {_TOKENS} tokens"
            body = {"model": "auto", "temperature": 0, "stream": True, "messages": [{"role": "user", "content": text}]}
            async with session.post(f"{edge.url}/v1/chat/completions", json=body) as response:
                raw = await response.text()
            lines = [line for line in raw.split("\n\n") if line.startswith("data: {")]
            chunks = [json.loads(line[6:]) for line in lines]
            said = "".join(choice["delta"].get("content", "") for one in chunks for choice in one.get("choices", []))
            right = raw.endswith("data: [DONE]\n\n") and said == greedy(body)
            results["whole and right" if right else f"status {response.status}, cut or wrong"] += 1

        process = edge.process
        before, began = process.memory_info().rss / 2**20, time.monotonic()
        used = process.cpu_times()
        running = asyncio.gather(*(stream(number) for number in range(count)))
        while not running.done():
            await asyncio.wait([running], timeout=0.5)
            most = max(most, len(edge.expert.attempts) - sum(results.values()))
            memory = max(memory, process.memory_info().rss / 2**20)
        await running
        seconds, spent = time.monotonic() - began, process.cpu_times()
        totals = edge.check_ledger(await edge.idle())
        table = Table(f"{count} streams, a token every {_PAUSE:g} s, seed {seed}, {seconds:.0f} s", "what", "value")
        for what, number in results.items():
            table.row(what, number)
        table.row("most at a time", most)
        table.row("memory of the edge before, at most", f"{before:.0f}, {memory:.0f} MiB")
        table.row("CPU of the edge", f"{(spent.user + spent.system - used.user - used.system) / seconds:.2f} cores")
        table.show(capsys, f"ledger: {dict(totals)}")
        assert set(results) == {"whole and right"}
        assert memory < 1024
