"""What the edge costs: classifier time for one prompt, and latency added over asking the same expert's URL directly.

    python benchmarks/edge.py                  # a scripted expert on loopback
    python benchmarks/edge.py --requests 500 --connections 1 16

Starts `collegium serve` on a pool of one remote URL (no Ray), sends each request directly, through the edge by the
expert's name (no classifier), once as `auto` (with it), in turns, and prints medians and ratios of the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
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
MODELS = json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}).encode()


@dataclass(frozen=True, slots=True)
class Road:
    """One way to the same answer."""

    name: str
    url: str
    model: str


async def scripted_expert(scope: dict[str, object], receive: object, send: object) -> None:
    """The cheapest OpenAI-compatible expert there can be: one fixed answer."""
    assert callable(receive) and callable(send)
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = MODELS if scope["method"] == "GET" else ANSWER
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=400, help="per road and number of connections")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--expert", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.expert:
        uvicorn.run(scripted_expert, port=options.port, log_level="error", access_log=False, lifespan="off")
        return
    console = Console()
    prompts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()][:200]
    _measure_classifier(console, prompts)
    asyncio.run(_measure_edge(console, prompts, options.requests, options.connections))


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


async def _measure_edge(console: Console, prompts: Sequence[str], requests: int, connections: Sequence[int]) -> None:
    expert_port, port, admin_port = _free_ports(3)
    expert = subprocess.Popen([sys.executable, __file__, "--expert", "--port", str(expert_port)])
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.yaml"
        pool.write_text(yaml.safe_dump([_card(expert_port)]))
        _wait_for(expert_port)
        serve = _start_serve(Path(folder), pool, port, admin_port)
        try:
            await _wait_ready(port)
            roads = [
                Road("direct to the expert", f"http://127.0.0.1:{expert_port}/v1/chat/completions", "scripted"),
                Road("edge, expert named", f"http://127.0.0.1:{port}/v1/chat/completions", "scripted"),
                Road("edge, auto", f"http://127.0.0.1:{port}/v1/chat/completions", "auto"),
            ]
            for count in connections:
                await _compare(console, roads, prompts, requests, count)
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


async def _compare(
    console: Console, roads: Sequence[Road], prompts: Sequence[str], requests: int, connections: int
) -> None:
    """Rounds of the roads in turn, so that a slow moment of the machine hits all of them."""
    latencies: dict[str, list[float]] = {road.name: [] for road in roads}
    seconds = {road.name: 0.0 for road in roads}
    rounds = 8
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        for turn in range(rounds + 1):
            for road in roads:
                started = time.perf_counter()
                times = await _burst(session, road, prompts, requests // rounds, connections)
                if turn:  # the first round warms up
                    seconds[road.name] += time.perf_counter() - started
                    latencies[road.name] += times
    columns = ("road", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "requests/s", "of direct")
    table = Table(*columns, title=f"{connections} connection(s)")
    quantiles = {name: statistics.quantiles(times, n=100) for name, times in latencies.items()}
    rates = {name: len(times) / seconds[name] for name, times in latencies.items()}
    direct = roads[0].name
    for road in roads:
        p50, p99 = quantiles[road.name][49], quantiles[road.name][98]
        added = (f"{p50 - quantiles[direct][49]:+.2f}", f"{p99 - quantiles[direct][98]:+.2f}")
        rate = rates[road.name]
        table.add_row(road.name, f"{p50:.2f}", f"{p99:.2f}", *added, f"{rate:.0f}", f"{rate / rates[direct]:.2f}")
    console.print(table)


async def _burst(
    session: aiohttp.ClientSession, road: Road, prompts: Sequence[str], requests: int, connections: int
) -> list[float]:
    times: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        for number in left:
            messages = [{"role": "user", "content": prompts[number % len(prompts)]}]
            body = {"model": road.model, "messages": messages, "max_tokens": 2}
            started = time.perf_counter()
            async with session.post(road.url, json=body) as response:
                await response.read()
                assert response.status == 200, await response.text()
            times.append(1000 * (time.perf_counter() - started))

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


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
