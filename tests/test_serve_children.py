"""A child that is kept alive: how soon it is started again."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from collegium.serve.children import Child

COMES_UP = "from collegium.experts.processes import tell_ready; tell_ready(); raise SystemExit(3)"


@pytest.mark.parametrize(
    ("code", "waits"),
    [("raise SystemExit(3)", [0.2, 0.4, 0.8, 1.6, 3.2]), (COMES_UP, [0.2, 0.4, 0.8, 1.0, 1.0])],
)
def test_one_that_had_come_up_is_waited_for_less_long(tmp_path: Path, code: str, waits: list[float]) -> None:
    told: list[str] = []

    async def run() -> None:
        child = Child("child", [sys.executable, "-c", code], tmp_path / "log", os.environ, told.append)
        running = asyncio.create_task(child.run())
        while len(told) < len(waits):
            await asyncio.sleep(0.02)
        await child.stop(1)
        running.cancel()

    asyncio.run(run())
    assert [float(re.findall(r"again in ([\d.]+) s", line)[0]) for line in told] == waits
    assert all("ended with code 3" in line for line in told)
