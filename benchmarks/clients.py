"""Which HTTP client the edge should have towards experts: CPU and latency of each against the scripted expert.

    python benchmarks/clients.py --requests 800

Each client is set up as the edge sets up its own (a ready body, no redirects, no proxies from the environment, uvloop),
and all are asked in turns. A short answer is one JSON object; a stream is 64 tokens, each sent by itself, read as it
comes. CPU is that of this process, which does nothing else. httpx is tried where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import numpy as np
import orjson
import uvloop
from collegium.experts.ray_cluster import free_ports
from load import ROUNDS, Road, wait_for_answer
from rich.console import Console
from rich.table import Table
from scripted import LONG, MODEL

Ask = Callable[[str, bytes], Awaitable[int]]
"""Posts a body to a URL, reads the answer as it comes, returns its bytes."""
HEADERS = {"content-type": "application/json"}


@asynccontextmanager
async def _aiohttp() -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=2)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout, auto_decompress=False
    ) as session:

        async def ask(url: str, body: bytes) -> int:
            async with session.post(url, data=body, headers=HEADERS, allow_redirects=False) as response:
                return sum([len(part) async for part in response.content.iter_any()])

        yield ask


@asynccontextmanager
async def _httpx(module: str) -> AsyncIterator[Ask]:
    """httpx and httpx2 have the same interface."""
    httpx = import_module(module)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None, connect=2), trust_env=False) as client:

        async def ask(url: str, body: bytes) -> int:
            async with client.stream("POST", url, content=body, headers=HEADERS) as response:
                return sum([len(part) async for part in response.aiter_raw()])

        yield ask


CLIENTS: dict[str, Callable[[], AbstractAsyncContextManager[Ask]]] = {
    "aiohttp": _aiohttp,
    "httpx2": lambda: _httpx("httpx2"),
    "httpx": lambda: _httpx("httpx"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="per client, kind of answer and connections")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    port = free_ports(("expert",))["expert"]
    command = [sys.executable, str(Path(__file__).with_name("scripted.py")), "--port", str(port)]
    with subprocess.Popen(command) as expert:
        try:
            uvloop.run(_compare(f"http://127.0.0.1:{port}", options.requests, options.connections))
        finally:
            expert.terminate()


async def _compare(base: str, requests: int, connections: Sequence[int]) -> None:
    if not await wait_for_answer(Road("", "direct", f"{base}/v1/chat/completions", MODEL, ()), 30):
        raise TimeoutError("the scripted expert did not start")
    table = Table("load", "client", "p50 ms", "p99 ms", "requests/s", "CPU ms a request", "times aiohttp's CPU")
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(opened()) for name, opened in CLIENTS.items() if find_spec(name)
        }
        for stream, kind in ((False, "short answer"), (True, "stream of 64 tokens")):
            url = f"{base}{LONG if stream else ''}/v1/chat/completions"
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            body = orjson.dumps({"model": MODEL, "messages": messages, "stream": stream})
            for count in connections:
                title = f"{kind}, {count} connection{'s' if count > 1 else ''}"
                for row in await _rows(clients, url, body, requests, count):
                    table.add_row(title, *row)
                    title = ""
                table.add_section()
    Console(width=120).print(table)


async def _rows(
    clients: dict[str, Ask], url: str, body: bytes, requests: int, connections: int
) -> list[tuple[str, ...]]:
    """Rounds of the clients in turn; the first is not counted."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    cpu, seconds = dict.fromkeys(clients, 0.0), dict.fromkeys(clients, 0.0)
    for turn in range(ROUNDS + 1):
        for name, ask in clients.items():
            started, used = time.perf_counter(), time.process_time()
            taken = await _burst(ask, url, body, max(requests // ROUNDS, 1), connections)
            if turn:
                times[name] += taken
                cpu[name] += time.process_time() - used
                seconds[name] += time.perf_counter() - started
    rows: list[tuple[str, ...]] = []
    for name, taken in times.items():
        p50, p99 = np.quantile(taken, (0.5, 0.99))
        rate, each = len(taken) / seconds[name], 1000 * cpu[name] / len(taken)
        share = cpu[name] / cpu["aiohttp"]
        rows.append((name, f"{p50:.2f}", f"{p99:.2f}", f"{rate:.0f}", f"{each:.2f}", f"{share:.2f}"))
    return rows


async def _burst(ask: Ask, url: str, body: bytes, requests: int, connections: int) -> list[float]:
    times: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            started = time.perf_counter()
            assert await ask(url, body), "an empty answer"
            times.append(1000 * (time.perf_counter() - started))

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


if __name__ == "__main__":
    main()
