"""Crowds of clients, slow ones and insistent ones: `pytest -m slow tests/faults/test_long_crowd.py --size 1000`."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import openai
import pytest
from faults import behaviours as do
from faults.engine import greedy
from faults.expert import Expert
from faults.outside import outside, quantile, request
from faults.table import Table

_HEAD, _BODY = 10.0, 30.0  # seconds: the edge's own bounds
_RATE = 20.0
_PLACES, _WORK = 4, 0.05


@pytest.fixture
def size(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("size") or 200


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_b07_requests_a_byte_a_second_are_cut_and_the_rest_is_served(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_slowly(tmp_path, size, capsys))


async def _slowly(folder: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    whole = request("never read 4 tokens", stream=False)
    cut = whole.index(b"\r\n\r\n") + 4
    async with outside(folder, Expert()) as edge, aiohttp.ClientSession() as session:
        lasted: dict[str, list[float]] = {"head": [], "body": []}

        async def trickle(number: int) -> None:
            """Half of them are slow from the first byte on, half only in the body."""
            part, done = ("head", 1) if number % 2 else ("body", cut)
            await asyncio.sleep(number / size)
            began = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            writer.write(whole[:done])
            ended = asyncio.create_task(reader.read())
            while not ended.done():
                with suppress(ConnectionError):
                    writer.write(whole[done : done + 1])
                done += 1
                await asyncio.wait({ended}, timeout=1.0)
            lasted[part].append(time.monotonic() - began)
            writer.close()

        async def ordinary(until: asyncio.Event) -> list[float]:
            """Times of ordinary requests, each of which is answered right."""
            times, number = [], 0
            while not until.is_set():
                text, began = f"o{number} 4 tokens", time.monotonic()
                body = {"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": text}]}
                async with session.post(f"{edge.url}/v1/chat/completions", json=body) as response:
                    said = json.loads(await response.text())["choices"][0]["message"]["content"]
                times.append(time.monotonic() - began)
                assert said == greedy(body)
                number += 1
                await asyncio.sleep(1 / _RATE)
            return times

        alone, crowded = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().call_later(10, alone.set)
        before = await ordinary(alone)
        meanwhile = asyncio.create_task(ordinary(crowded))
        await asyncio.gather(*(trickle(number) for number in range(size)))
        crowded.set()
        during = await meanwhile
        totals = edge.check_ledger(await edge.idle())
    table = Table(f"{size} connections, a byte a second", "what", "median", "p99", "longest")
    for part, times in lasted.items():
        table.row(f"cut, slow in the {part}", *(f"{quantile(times, share):.1f} s" for share in (0.5, 0.99, 1)))
    for what, times in (("before", before), ("meanwhile", during)):
        shown = (f"{1000 * quantile(times, share):.1f} ms" for share in (0.5, 0.99, 1))
        table.row(f"ordinary requests {what} ({len(times)})", *shown)
    table.show(capsys, f"ledger: {dict(totals)}")
    assert max(lasted["head"]) < _HEAD + 5 and max(lasted["body"]) < _BODY + 5
    assert totals["completed"] == len(before) + len(during)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_g02_clients_that_all_come_at_once_and_try_again(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_insisting(tmp_path, size, capsys))


async def _insisting(folder: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's own client, which tries twice more by itself, so many times at once."""
    results: Counter[str] = Counter()
    async with (
        outside(folder, Expert(always=do.late(_WORK)), limits={"concurrency": _PLACES}) as edge,
        openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=2) as client,
    ):

        async def insist(number: int) -> None:
            try:
                await client.chat.completions.create(
                    model="auto", temperature=0, messages=[{"role": "user", "content": f"i{number} 4 tokens"}]
                )
                results["answered"] += 1
            except openai.APIStatusError as error:
                results[str(error.code)] += 1

        began = time.monotonic()
        await insist(-1)
        usual = time.monotonic() - began
        began = time.monotonic()
        await asyncio.gather(*(insist(number) for number in range(size)))
        storm = time.monotonic() - began
        while True:
            now = time.monotonic()
            await insist(-2)
            if time.monotonic() - now < 2 * usual + _WORK:
                break
        recovered = time.monotonic() - began - storm
        told = await edge.idle()
        totals = edge.check_ledger(told)
    table = Table(f"{size} clients at once that try again, {_PLACES / _WORK:.0f} answers a second", "what", "value")
    for what, number in results.items():
        table.row(what, number)
    table.row("all had an answer or an error after", f"{storm:.1f} s")
    table.row("as before again after", f"{recovered:.1f} s")
    table.row("requests, sendings to the expert", f"{told['accepted']}, {told['attempts']}")
    table.show(capsys, f"ledger: {dict(totals)}")
    assert set(results) <= {"answered", "server_is_overloaded"}
    assert int(str(told["attempts"])) <= 1.1 * totals["completed"] + 2
    assert recovered < 10
