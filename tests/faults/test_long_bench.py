"""The sixteen faults many times over, under load: `pytest -m slow tests/faults/test_long_bench.py --size 200`.

The size is the number of repeats of every case; each repeat has a seed of its own.
"""

from __future__ import annotations

import inspect
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from faults import test_failover_bench as bench
from faults.kit import QUICK, Lab, laboratory
from faults.table import Table
from faults.test_recovery import FORGIVING, down_then_healthy

LOAD = Path(__file__).parent / "load.py"
RATE = 50
_THREADS = 24
# A busy machine lets a healthy expert be late by seconds.
_PATIENT = replace(QUICK, first_byte=6, between_events=6, total=90)
# Second sendings are a tenth of all requests: repeats that follow each other faster would rightly be refused them.
_REPEAT_TIME = 8.0

Case = tuple[str, Callable[..., None], dict[str, object]]


def cases() -> Iterator[Case]:
    """Every test of the catalogue with each of its parameters."""
    found = [function for name, function in vars(bench).items() if name.startswith("test_c")]
    for function in found:
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        for chosen in itertools.product(*(mark.args[1] for mark in marks)):
            values: dict[str, object] = {}
            for mark, value in zip(marks, chosen, strict=True):
                names = mark.args[0]
                values |= {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))
            name = function.__name__.removeprefix("test_")
            yield name[:3], function, values


@contextmanager
def background(url: str, seed: int, *models: str) -> Iterator[dict[str, object]]:
    """Ordinary requests meanwhile; what came of them is there afterwards."""
    command = [sys.executable, str(LOAD), url, str(RATE), str(seed), *models]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told: dict[str, object] = {}
    try:
        yield told
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=120)
        told |= json.loads(out)
    finally:
        child.kill()
        child.wait()


class Tally:
    """Passes and failures by fault."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: defaultdict[str, list[str]] = defaultdict(list)
        self._began = time.monotonic()

    def run(self, name: str, what: str, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - one of many, all of which are told at the end
            self.failed[name].append(f"{what}: {type(error).__name__} {str(error)[:300]}")
        else:
            self.passed[name] += 1

    def conclude(self, lab: Lab, repeats: int, told: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
        """Show the table; fail where anything did, the load included."""
        results = cast("dict[str, int]", told["results"])
        right = results.get("right", 0)
        seconds = time.monotonic() - self._began
        table = Table(
            f"Failover Bench, {repeats} repeats, {RATE} requests/s beside them, {seconds:.0f} s",
            "fault", "passed", "failed",
        )  # fmt: skip
        for name in sorted({*self.passed, *self.failed}):
            table.row(name, self.passed[name], len(self.failed.get(name, [])))
        table.row("load", right, sum(results.values()) - right)
        ended = {end.value: count for end, count in lab.app.ledger.ended.items()}
        table.show(capsys, f"load: {results}, p50 {told['p50']} s, p99 {told['p99']} s; ledger: {ended}")
        assert not self.failed, "\n".join(line for lines in self.failed.values() for line in lines[:5])
        assert set(results) == {"right"}, results


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_repeated_under_load(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    repeats = request.config.getoption("size") or 3
    first = request.config.getoption("first_seed")
    tally = Tally()
    with laboratory(tmp_path, _PATIENT) as lab:
        with background(lab.url, first) as told, ThreadPoolExecutor(_THREADS) as pool:
            for seed in range(first, first + repeats):
                for number, (name, function, values) in enumerate(cases()):
                    offered = {"lab": lab, "tag": f"{name}-{number}-{seed}", "seed": seed, **values}
                    wanted = inspect.signature(function).parameters
                    case = partial(function, **{key: value for key, value in offered.items() if key in wanted})
                    pool.submit(tally.run, name, f"seed {seed} {values}", case)
                time.sleep(_REPEAT_TIME)
        tally.conclude(lab, repeats, told, capsys)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("listed", [True, False])
def test_c15_repeated_under_load(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], listed: bool
) -> None:
    """In a laboratory whose breakers open; the load goes to the expert that stays."""
    repeats = request.config.getoption("size") or 3
    first = request.config.getoption("first_seed")
    tally = Tally()
    with laboratory(tmp_path, FORGIVING[listed]) as lab:
        with background(lab.url, first, "general") as told:
            for seed in range(first, first + repeats):
                tally.run("c15", f"seed {seed}", partial(down_then_healthy, lab, 1.5, listed))
        tally.conclude(lab, repeats, told, capsys)
