"""What the edge costs: classifier time for one prompt, and what it adds to asking the same expert's URL directly.

    python benchmarks/edge.py                  # a scripted expert on loopback
    python benchmarks/edge.py --requests 500 --connections 1 16 --rate 300

Starts `collegium serve` on a pool of one remote URL (no Ray), sends each request directly, through the edge by the
expert's name (no classifier), once as `auto` (with it), in turns, and prints medians and ratios of the same run. CPU is
the edge process's own (the expert's, where it is asked directly), which a busy machine changes least. `--rate` sends so
many requests a second, however long the answers take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import uvicorn
import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "training" / "prompts" / "own.jsonl"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
).encode()
CHUNK = {"id": "chatcmpl-benchmark", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
CHOICES = [
    {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
    for delta in ({"role": "assistant", "content": ""}, {"content": "Yes"}, {"content": "."}, {})
]
EVENTS = (
    "".join(f"data: {json.dumps({**CHUNK, 'choices': [one]})}\n\n" for one in CHOICES).encode() + b"data: [DONE]\n\n"
)
MODELS = json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}).encode()


Burst = Callable[[aiohttp.ClientSession, "Road", Sequence[str], int], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True)
class Road:
    """One way to the same answer."""

    name: str
    url: str
    model: str
    process: psutil.Process
    stream: bool = False

    @property
    def used(self) -> float:
        """CPU seconds of whoever answers."""
        times = self.process.cpu_times()
        return times.user + times.system


async def scripted_expert(scope: dict[str, object], receive: object, send: object) -> None:
    """The cheapest OpenAI-compatible expert there can be: one fixed answer."""
    assert callable(receive) and callable(send)
    if scope["type"] != "http":
        return
    asked, more = b"", True
    while more:
        message = await receive()
        asked, more = asked + message.get("body", b""), message.get("more_body")
    if b'"stream":true' in asked.replace(b" ", b""):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": EVENTS})
        return
    body = MODELS if scope["method"] == "GET" else ANSWER
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=400, help="per road and number of connections")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of the open loop")
    parser.add_argument("--expert", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.expert:
        uvicorn.run(scripted_expert, port=options.port, log_level="error", access_log=False, lifespan="off")
        return
    console = Console(width=140)
    prompts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()][:200]
    _measure_classifier(console, prompts)
    asyncio.run(_measure_edge(console, prompts, options.requests, options.connections, options.rate))


def _measure_classifier(console: Console, prompts: Sequence[str]) -> None:
    from collegium.experts.weights import locate
    from collegium.router.artefact import STARTER, load_router

    router = load_router(STARTER, locate)
    for prompt in prompts[:20]:
        router.posterior(prompt)
    times = []
    for prompt in prompts:
        started = time.perf_counter()
        router.posterior(prompt)
        times.append(1000 * (time.perf_counter() - started))
    console.print(f"classifier {router.version}, one prompt at a time, {len(times)} prompts: {_quantiles(times)}")


async def _measure_edge(
    console: Console, prompts: Sequence[str], requests: int, connections: Sequence[int], rate: float
) -> None:
    expert_port, port, admin_port = _free_ports(3)
    expert = subprocess.Popen([sys.executable, __file__, "--expert", "--port", str(expert_port)])
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.yaml"
        pool.write_text(yaml.safe_dump([_card(expert_port)]))
        _wait_for(expert_port)
        serve = _start_serve(Path(folder), pool, port, admin_port)
        try:
            await _wait_ready(port)
            roads = list(_roads(expert_port, port, expert.pid, serve.pid))
            for count in connections:
                await _compare(console, f"{count} connection(s)", roads, prompts, requests, partial(_closed, count))
            title = f"open loop, {rate:g} requests/s"
            await _compare(console, title, roads, prompts, requests, partial(_open, rate))
            memory = roads[-1].process.memory_info().rss / 2**20
            console.print(f"memory of the edge process: {memory:.0f} MiB")
        finally:
            serve.send_signal(signal.SIGTERM)
            serve.wait(60)
            expert.terminate()
            expert.wait(10)


def _card(port: int) -> dict[str, object]:
    backend = {"kind": "remote", "url": f"http://127.0.0.1:{port}/v1", "model": "scripted"}
    return {"name": "scripted", "generalist": True, "backend": backend}


def _start_serve(folder: Path, pool: Path, port: int, admin_port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "collegium.cli.main", "serve", str(pool), "--state", str(folder / "state")]
    command += ["--port", str(port), "--admin-port", str(admin_port)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "COLLEGIUM_ALLOW_NETWORKS": "127.0.0.1"}
    )


def _roads(expert_port: int, port: int, expert: int, serve: int) -> Iterator[Road]:
    """Direct first, then through the edge without and with the classifier; whole answers, then streams."""
    direct, edge = (f"http://127.0.0.1:{number}/v1/chat/completions" for number in (expert_port, port))
    asked = psutil.Process(expert)
    (worker,) = (one for one in psutil.Process(serve).children() if "collegium.serve.edge" in one.cmdline())
    for stream, kind in ((False, ""), (True, ", first event")):
        yield Road(f"direct{kind}", direct, "scripted", asked, stream)
        yield Road(f"edge, expert named{kind}", edge, "scripted", worker, stream)
        yield Road(f"edge, auto{kind}", edge, "auto", worker, stream)


async def _compare(
    console: Console, title: str, roads: Sequence[Road], prompts: Sequence[str], requests: int, burst: Burst
) -> None:
    """Rounds of the roads in turn, so that a slow moment of the machine hits all of them."""
    latencies: dict[str, list[float]] = {road.name: [] for road in roads}
    seconds, used = {road.name: 0.0 for road in roads}, {road.name: 0.0 for road in roads}
    rounds = 8
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for turn in range(rounds + 1):
            for road in roads:
                started, before = time.perf_counter(), road.used
                times = await burst(session, road, prompts, requests // rounds)
                if turn:  # the first round warms up
                    seconds[road.name] += time.perf_counter() - started
                    used[road.name] += road.used - before
                    latencies[road.name] += times
    columns = (
        "road",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "added p50 ms",
        "p50 of direct",
        "requests/s",
        "CPU ms a request",
    )
    table = Table(*columns, title=title)
    quantiles = {name: statistics.quantiles(times, n=1000) for name, times in latencies.items()}
    for road in roads:
        p50, p99, p999 = (quantiles[road.name][place] for place in (499, 989, 998))
        direct = quantiles[roads[3 * road.stream].name][499]
        rate = len(latencies[road.name]) / seconds[road.name]
        cost = 1000 * used[road.name] / len(latencies[road.name])
        shown = (f"{value:.2f}" for value in (p50, p99, p999, p50 - direct, p50 / direct))
        table.add_row(road.name, *shown, f"{rate:.0f}", f"{cost:.2f}")
    console.print(table)


async def _closed(
    connections: int, session: aiohttp.ClientSession, road: Road, prompts: Sequence[str], requests: int
) -> list[float]:
    """Each connection asks again as soon as it has its answer."""
    times: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        times.extend([await _ask(session, road, prompts[number % len(prompts)]) for number in left])

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


async def _open(
    rate: float, session: aiohttp.ClientSession, road: Road, prompts: Sequence[str], requests: int
) -> list[float]:
    """Requests at random times; one that the client itself is late with counts from when it was due."""
    chance, due, running = random.Random(requests), time.perf_counter(), []

    async def one(prompt: str, due: float) -> float:
        waited = 1000 * (time.perf_counter() - due)
        return waited + await _ask(session, road, prompt)

    for number in range(requests):
        due += chance.expovariate(rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        running.append(asyncio.create_task(one(prompts[number % len(prompts)], due)))
    return await asyncio.gather(*running)


async def _ask(session: aiohttp.ClientSession, road: Road, prompt: str) -> float:
    """Milliseconds to the whole answer, or to the first event of a stream."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": road.model, "messages": messages, "max_tokens": 2, "stream": road.stream}
    started = time.perf_counter()
    async with session.post(road.url, json=body) as response:
        if road.stream:
            await response.content.readany()
        else:
            await response.read()
        took = 1000 * (time.perf_counter() - started)
        assert response.status == 200, await response.text()
        await response.read()
    return took


async def _wait_ready(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise TimeoutError("the edge was not ready within two minutes")


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the scripted expert did not start")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _quantiles(times: Sequence[float]) -> str:
    return f"p50 {statistics.median(times):.2f} ms, p99 {statistics.quantiles(times, n=100)[98]:.2f} ms"


if __name__ == "__main__":
    main()
