"""An edge in processes of its own over one scripted expert in this event loop, seen from outside only."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from collegium.experts.card import parse_card
from collegium.experts.processes import raise_file_limit
from collegium.experts.registry import Registry, State
from faults.expert import Expert

HERE = Path(__file__).parent


@dataclass
class Outside:
    """Edge processes on one listening socket, the registry that they read, and the expert behind them."""

    folder: Path
    listener: socket.socket
    registry: Registry
    expert: Expert
    settings: dict[str, object]
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> psutil.Process:
        """The only worker."""
        (worker,) = self.workers
        return psutil.Process(worker.pid)

    def start(self) -> subprocess.Popen[bytes]:
        number = str(self.listener.fileno())
        settings = json.dumps({**self.settings, "worker": len(self.workers) % 8})
        command = [sys.executable, str(HERE / "edge_process.py"), number, self.registry_url, settings]
        with (self.folder / "edge.log").open("ab") as log:
            environment = {**os.environ, **self.environment}
            worker = subprocess.Popen(command, stderr=log, pass_fds=[self.listener.fileno()], env=environment)
        self.workers.append(worker)
        return worker

    @property
    def registry_url(self) -> str:
        return f"sqlite:///{self.folder / 'registry.db'}"

    async def probe(self) -> dict[str, object]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/probe") as response:
            told: dict[str, object] = await response.json(content_type=None)
        return told

    async def idle(self, seconds: float = 30.0) -> dict[str, object]:
        """Wait until nothing is in flight; what the edge tells then."""
        until = time.monotonic() + seconds
        while (told := await self.probe())["in_flight"]:
            assert time.monotonic() < until, f"requests do not end: {told}"
            await asyncio.sleep(0.05)
        return told

    def lines(self) -> list[dict[str, object]]:
        """The access log, one line a request."""
        read = [json.loads(line) for line in (self.folder / "edge.log").read_text().splitlines()]
        unexpected = [line for line in read if "request" not in line and line["level"] not in ("info", "warning")]
        assert not unexpected, unexpected[:3]
        found = [line for line in read if "request" in line]
        assert len({line["request"] for line in found}) == len(found), "one line a request"
        return found

    def check_ledger(self, told: dict[str, object]) -> Counter[str]:
        """The worker's counts against its log, and the log against the expert's; how many requests ended how."""
        lines = self.lines()
        ended = Counter(str(line["end"]) for line in lines)
        assert told["balanced"] and told["accepted"] == len(lines) and told["ended"] == dict(ended), (told, ended)
        seen = Counter(attempt.id for attempt in self.expert.attempts)
        for line in lines:
            results = [attempt["result"] for attempt in line["attempts"]]  # type: ignore[attr-defined]
            most = len(results) - results.count("connect")
            # Cancelled before its first byte went out, an attempt has not reached the expert.
            assert most - results.count("cancelled") <= seen.pop(str(line["request"]), 0) <= most, line
        assert not seen, "the expert saw requests that the ledger does not know"
        return ended


@asynccontextmanager
async def outside(
    folder: Path,
    expert: Expert,
    workers: int = 1,
    limits: Mapping[str, object] | None = None,
    environment: dict[str, str] | None = None,
    **settings: object,
) -> AsyncIterator[Outside]:
    """Workers that are ready, over one remote expert and generalist named `math`."""
    raise_file_limit()
    await expert.start()
    found = Outside(folder, socket.socket(), Registry(f"sqlite:///{folder / 'registry.db'}"), expert, settings)
    found.environment |= environment or {}
    try:
        backend = {"kind": "remote", "url": expert.url, "model": "scripted"}
        card = parse_card({"name": "math", "backend": backend, "generalist": True, "limits": dict(limits or {})})
        found.registry.add(card)
        found.registry.observe(card.name, State.READY, base_url=expert.url)
        found.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.listener.bind(("127.0.0.1", 0))
        found.listener.listen(2048)
        for _ in range(workers):
            found.start()
        await found.probe()
        yield found
    finally:
        for worker in found.workers:
            worker.kill()
            worker.wait()
        found.listener.close()
        found.registry.close()
        await expert.stop()


def request(text: str, stream: bool, connection: str = "close") -> bytes:
    """A chat request as it goes over the wire."""
    body = {"model": "auto", "temperature": 0, "stream": stream, "messages": [{"role": "user", "content": text}]}
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0
