"""Clients that leave at random points: `pytest -m slow tests/faults/test_long_leave.py --size 10000`."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faults import behaviours as do
from faults.expert import Exchange, Expert
from faults.outside import Outside, outside, quantile, request
from faults.table import Table

_AT_ONCE = 24
_PLACES = 64
_LONGEST = 0.4  # seconds until a client leaves that waits for no event
_HANG, _STREAM = do.hang, do.unhurried(0.02)


async def slow(exchange: Exchange) -> None:
    """No answer at all, or one that takes longer than any client stays."""
    await (_STREAM if exchange.attempt.body.get("stream") and "hang" not in exchange.attempt.tag else _HANG)(exchange)


@dataclass
class Visitors:
    """Clients and what they did; times are monotonic, as the expert's."""

    edge: Outside
    chance: random.Random
    gone: dict[str, float] = field(default_factory=dict)
    points: Counter[str] = field(default_factory=Counter)

    async def visit(self, number: int) -> None:
        """Leave in the middle of the request, at any time after it, or after any event of the answer."""
        chance = self.chance
        point = chance.choices(("request incomplete", "any time", "mid-stream"), (15, 40, 45))[0]
        tag = f"{'stream' if point == 'mid-stream' else chance.choice(('hang', 'stream'))}-{number}"
        raw = request(f"{tag} 60 tokens", stream=point == "mid-stream" or chance.random() < 0.5)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.edge.port)
        writer.write(raw[: chance.randrange(len(raw))] if point == "request incomplete" else raw)
        if point == "mid-stream":
            for _ in range(chance.randint(2, 12)):
                assert await reader.readuntil(b"\n\n")
        elif chance.random() < 0.9:
            await asyncio.sleep(chance.uniform(0, _LONGEST))
        if chance.random() < 0.5:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.gone[tag] = time.monotonic()
        writer.transport.abort()
        self.points[point] += 1

    async def all(self, count: int) -> None:
        numbers = iter(range(count))

        async def next_ones() -> None:
            for number in numbers:
                await self.visit(number)

        await asyncio.gather(*(next_ones() for _ in range(_AT_ONCE)))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_clients_that_leave(
    tmp_path: Path, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    count = request.config.getoption("size") or 1000
    asyncio.run(_leave(tmp_path, seed, count, capsys))


async def _leave(folder: Path, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    expert = Expert(always=slow)
    limits = {"concurrency": _PLACES}
    async with outside(folder, expert, limits=limits, connections_per_expert=_PLACES) as edge:
        visitors = Visitors(edge, random.Random(seed))
        await visitors.all(200)  # warm
        await edge.idle()
        await asyncio.sleep(4)  # past the time that idle connections are kept
        before, files, memory = await edge.idle(), edge.process.num_fds(), edge.process.memory_info().rss
        expert.attempts.clear()
        (folder / "edge.log").write_text("")
        began = time.monotonic()
        visitors = Visitors(edge, random.Random(seed))
        await visitors.all(count)
        seconds = time.monotonic() - began
        after = await edge.idle()
        await asyncio.sleep(4)
        after = await edge.idle()
        told = {"balanced": after["balanced"], "accepted": _more(before, after, "accepted")}
        ended = Counter(after["ended"]) - Counter(before["ended"])  # type: ignore[call-overload]
        assert edge.check_ledger({**told, "ended": dict(ended)}) == ended
        assert not [attempt.tag for attempt in expert.attempts if attempt.left is None and attempt.ended is None]
        late = [attempt.left - visitors.gone[attempt.tag] for attempt in expert.attempts if attempt.left is not None]
        leaked = {
            "tasks": _more(before, after, "tasks"),
            "files": edge.process.num_fds() - files,
            "connections": expert.connections,
        }
        table = Table(f"{count} clients that leave, seed {seed}, {seconds:.0f} s", "what", "value")
        for what, number in [*visitors.points.items(), *ended.items()]:
            table.row(what, number)
        for share in (0.5, 0.99, 0.999, 1.0):
            table.row(f"expert left after, p{share * 100:g}", f"{1000 * quantile(late, share):.1f} ms")
        for what, number in leaked.items():
            table.row(f"more {what} than before", number)
        table.row("more memory", f"{(edge.process.memory_info().rss - memory) / 2**20:.1f} MiB")
        table.show(capsys)
        assert set(ended) <= {"client_cancelled"}
        assert all(number <= 0 for number in leaked.values()), leaked
        await _take_all_places(edge)


async def _take_all_places(edge: Outside) -> None:
    """No place and no connection of the pool was lost: as many requests as there are reach the expert at once."""
    edge.expert.attempts.clear()
    ends = []
    for number in range(_PLACES):
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(f"hang-last-{number} x", stream=True))
        ends.append(writer)
    async with asyncio.timeout(20):
        while len(edge.expert.attempts) < _PLACES:
            await asyncio.sleep(0.01)
    for writer in ends:
        writer.close()
    await edge.idle()


def _more(before: dict[str, object], after: dict[str, object], name: str) -> int:
    return int(str(after[name])) - int(str(before[name]))
