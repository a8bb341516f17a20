"""What the edge costs beside other ways to the same expert: classifier time, latency, CPU and memory in one run.

    python benchmarks/edge.py                  # a scripted expert on loopback
    python benchmarks/edge.py --requests 500 --connections 1 16 --rate 300 --plot edge.svg
    python benchmarks/edge.py --ray --peers DIR  # Ray's ingresses too, and the gateways of peers.py from their venvs

Starts `collegium serve` on a pool of one remote URL (no Ray), sends each request directly, through the edge by the
expert's name (no classifier), through it as `auto` (with it) and through each peer, in turns, and prints quantiles and
ratios of the same run. CPU is that of the processes of the road (the expert's own, where it is asked directly; on Ray
the replica, which answers itself, and the proxy), which a busy machine changes least. `--rate` sends so many requests
a second, however long the answers take. A peer that is missing or does not start is left out with a sentence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import yaml
from collegium.experts.ray_cluster import RayError, free_ports
from load import Load, Result, Road, closed, measure, open_loop, wait_for_answer
from peers import PEERS, START, Peer, Running
from plot import draw
from ray_ingress import PROXIES, Ingress
from rich.console import Console
from rich.table import Column, Table
from scripted import MODEL

HERE = Path(__file__).parent
PROMPTS = HERE.parent / "training" / "prompts" / "own.jsonl"
CHAT = "/v1/chat/completions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="per road and load")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of the open loop")
    parser.add_argument("--peers", type=Path, nargs="*", default=[], help="folders of virtual environments of peers")
    parser.add_argument("--ray", nargs="*", choices=PROXIES, help="also through Ray's own ingress; both, if not named")
    parser.add_argument("--plot", type=Path, help="draw the quantiles into this .svg or .png")
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or what was started would go on alone
    proxies = () if options.ray is None else options.ray or tuple(PROXIES)
    loads = [*map(closed, options.connections), open_loop(options.rate)]
    prompts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()][:200]
    console = Console(width=170)
    _measure_classifier(console, prompts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        roads = _start(console, stack, folder, [one.absolute() for one in options.peers], proxies)
        results = _measure(console, roads, loads, prompts, options.requests)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    if options.plot:
        draw(results, options.plot)


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
    p50, p99 = np.quantile(times, (0.5, 0.99))
    each = f"one prompt at a time, {len(times)} prompts"
    console.print(f"classifier {router.version}, {each}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def _start(
    console: Console, stack: ExitStack, folder: Path, venvs: Sequence[Path], proxies: Sequence[str]
) -> list[Road]:
    """Every road that works here: direct first, then ours, then the peers."""
    ports = free_ports(("expert", "edge", "admin", *(f"{peer.name}{part}" for peer in PEERS for part in ("", "+"))))
    direct = f"http://127.0.0.1:{ports['expert']}"
    expert = stack.enter_context(_ended([sys.executable, str(HERE / "scripted.py"), "--port", str(ports["expert"])]))
    roads = [Road("direct", "direct", direct + CHAT, MODEL, (expert,))]
    if not asyncio.run(wait_for_answer(roads[0], 30)):
        raise TimeoutError("the scripted expert did not start")
    roads += _edge_roads(stack, folder, ports["expert"], ports["edge"], ports["admin"])
    for peer in PEERS:
        roads += _peer_road(console, stack, peer, venvs, folder, direct, ports[peer.name], ports[f"{peer.name}+"])
    for proxy in proxies:
        roads += _ray_road(console, stack, folder, proxy)
    return roads


def _edge_roads(stack: ExitStack, folder: Path, expert: int, port: int, admin: int) -> list[Road]:
    backend = {"kind": "remote", "url": f"http://127.0.0.1:{expert}/v1", "model": MODEL}
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump([{"name": MODEL, "generalist": True, "backend": backend}]))
    command = [sys.executable, "-m", "collegium.cli.main", "serve", str(pool), "--state", str(folder / "state")]
    serve = stack.enter_context(_ended([*command, "--port", str(port), "--admin-port", str(admin)]))
    url = f"http://127.0.0.1:{port}{CHAT}"
    if not asyncio.run(wait_for_answer(Road("", "edge", url, MODEL, ()), 120)):
        raise TimeoutError("the edge did not answer within two minutes")
    workers = tuple(one for one in serve.children() if "collegium.serve.edge" in one.cmdline())
    return [
        Road("collegium, by name", "edge", url, MODEL, workers),
        Road("collegium, auto", "edge", url, "auto", workers),
    ]


def _peer_road(
    console: Console,
    stack: ExitStack,
    peer: Peer,
    venvs: Sequence[Path],
    folder: Path,
    expert: str,
    port: int,
    spare: int,
) -> Iterator[Road]:
    command = peer.find(venvs)
    if command is None:
        console.print(f"{peer.name} left out: no such command under --peers or on PATH")
        return
    running = Running(peer, command, folder, expert, port, spare)
    stack.callback(running.stop)
    road = Road(peer.name, "peer", f"http://127.0.0.1:{port}{CHAT}", MODEL, ())
    if asyncio.run(wait_for_answer(road, START)):
        yield replace(road, processes=running.processes())
    else:
        console.print(f"{peer.name} left out: no answer within {START:g} s; {running.last_words()}")


def _ray_road(console: Console, stack: ExitStack, folder: Path, proxy: str) -> Iterator[Road]:
    ingress, name = Ingress(folder, proxy), f"Ray Serve, {PROXIES[proxy]}"
    stack.callback(ingress.stop)
    try:
        road = Road(name, "peer", ingress.start() + CHAT, MODEL, ())
    except RayError as error:
        console.print(f"{name} left out: {error}")
        return
    if asyncio.run(wait_for_answer(road, 30)):
        yield replace(road, processes=ingress.processes())
    else:
        console.print(f"{name} left out: it does not answer")


@contextmanager
def _ended(command: Sequence[str]) -> Iterator[psutil.Process]:
    """A process of ours that is asked to end when the benchmark does."""
    environment = {**os.environ, "COLLEGIUM_ALLOW_NETWORKS": "127.0.0.1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _measure(
    console: Console, roads: Sequence[Road], loads: Sequence[Load], prompts: Sequence[str], requests: int
) -> list[Result]:
    both = [replace(road, stream=stream) for stream in (False, True) for road in roads]
    results: list[Result] = []
    for load in loads:
        measured = asyncio.run(measure(load, both, prompts, requests))
        console.print(_table(load.title, measured))
        results += measured
    answering = {road.processes: road for road in reversed(roads)}  # by name and auto are the same process
    memory = [f"{road.name} {road.mebibytes:.0f} MiB" for road in reversed(answering.values())]
    console.print(f"memory: {'; '.join(memory)}")
    return results


def _table(title: str, results: Sequence[Result]) -> Table:
    times = ("p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "added p50 ms", "p50 of direct")
    rest = ("requests/s", "CPU ms a request", "requests/s a core", "failed")
    table = Table(Column("road", no_wrap=True), *times, *rest, title=title)
    direct = {result.stream: result.p50 for result in results if result.kind == "direct"}
    for one in results:
        base = direct[one.stream]
        shown = (f"{value:.2f}" for value in (one.p50, one.p90, one.p99, one.p999, one.p50 - base, one.p50 / base))
        costs = (f"{one.rate:.0f}", f"{one.cpu:.2f}", f"{1000 / one.cpu:.0f}" if one.cpu else "")
        table.add_row(one.road + (", first event" if one.stream else ""), *shown, *costs, str(one.failed or ""))
    return table


if __name__ == "__main__":
    main()
