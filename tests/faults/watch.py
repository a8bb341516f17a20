"""What processes hold, looked at from outside again and again, and whether it grows."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from scipy.stats import theilslopes

INSIDE = Path(__file__).parent / "inside"
_PATIENCE = 120.0
_MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """At so many hours: MiB of its own and in all, and counts; `blocks` are Python's, of memory."""

    hours: float
    own: float
    resident: float
    files: int
    threads: int
    tasks: int
    blocks: int


@dataclass(frozen=True)
class Slope:
    """Per cent an hour, with the ends of its interval at 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass
class Watch:
    """One process; `told` is where it tells what only it knows (inside/sitecustomize.py)."""

    name: str
    process: psutil.Process
    told: Path
    samples: list[Sample] = field(default_factory=list)
    most_own: float = 0.0
    most_files: int = 0
    most_threads: int = 0
    _began: float = field(default_factory=time.monotonic)

    def glance(self) -> None:
        """While it works: only how far it goes."""
        self.most_own = max(self.most_own, self.process.memory_full_info().uss / _MIB)
        self.most_files = max(self.most_files, self.process.num_fds())
        self.most_threads = max(self.most_threads, self.process.num_threads())

    async def look(self) -> Sample:
        """At rest."""
        inside = await self.ask()
        memory = self.process.memory_full_info()
        found = Sample(
            (time.monotonic() - self._began) / 3600,
            memory.uss / _MIB,
            memory.rss / _MIB,
            self.process.num_fds(),
            self.process.num_threads(),
            inside["tasks"],
            inside["blocks"],
        )
        self.samples.append(found)
        return found

    async def ask(self) -> dict[str, int]:
        """What only the process itself knows."""
        file = self.told / f"{self.process.pid}.json"
        file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        until = time.monotonic() + _PATIENCE
        while not file.exists():
            assert time.monotonic() < until, f"{self.name} tells nothing"
            await asyncio.sleep(0.05)
        found: dict[str, int] = json.loads(file.read_text())
        return found

    @property
    def settled(self) -> Sequence[Sample]:
        """Without the first third, in which caches and pools fill."""
        return self.samples[len(self.samples) // 3 :]

    def slope(self, what: str = "own") -> Slope:
        """Theil and Sen's: the median over all pairs of samples, which single odd ones do not move."""
        values = [getattr(sample, what) for sample in self.settled]
        found = theilslopes(values, [sample.hours for sample in self.settled])
        middle = sorted(values)[len(values) // 2]
        return Slope(*(100 * float(one) / middle for one in (found.slope, found.low_slope, found.high_slope)))


class Follower:
    """Reads on in a log that is copied to `.1` and cut when it is large (serve/children.py)."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0
        self.cuts = 0

    def more(self) -> list[dict[str, object]]:
        """The lines since the last time."""
        raw = b""
        if self._log.stat().st_size < self._at:
            raw = self._log.with_name(f"{self._log.name}.1").read_bytes()[self._at :]
            self._at = 0
            self.cuts += 1
        with self._log.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in (raw + whole).splitlines()]
