"""Logs that nobody takes or that grow: the edge goes on, and says afterwards what is missing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

import pytest
from collegium.serve.children import LOG_LIMIT, Child
from collegium.serve.log import JsonLines, Lines


def record(words: str) -> logging.LogRecord:
    return logging.LogRecord("collegium.edge", logging.INFO, __file__, 0, words, None, None)


@pytest.mark.parametrize("length", [10, 3000, 9000])
def test_a_full_pipe_holds_nobody_up_and_the_missing_lines_are_counted(length: int) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    handler = Lines(write)
    handler.setFormatter(JsonLines())
    emitted = 0
    while not handler.dropped or emitted < 50:
        handler.emit(record("x" * length))
        emitted += 1
    missing = handler.dropped
    taken = os.read(read, 1 << 20)
    handler.emit(record("after"))
    taken += os.read(read, 1 << 20)
    os.close(read)
    os.close(write)
    *lines, told, after = [line for line in taken.decode().split("\n") if line]
    if length > 4096:
        lines.pop()  # the one that the full pipe cut
    assert all(json.loads(line)["message"] == "x" * length for line in lines)
    assert len(lines) == emitted - missing
    assert json.loads(told)["message"].startswith(f"{missing} lines") and json.loads(after)["message"] == "after"


def test_a_full_disk_holds_nobody_up() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    handler = Lines(full)
    for _ in range(5):
        handler.emit(record("x"))
    os.close(full)
    assert handler.dropped == 5


def test_the_log_of_a_child_that_runs_long_is_kept_small(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    says = f"print('x' * {LOG_LIMIT + 10}, flush=True); time.sleep(0.5); print('later', flush=True)"
    code = f"import time; {says}; time.sleep(600)"

    async def main() -> None:
        child = Child("child", [sys.executable, "-c", code], log, os.environ, print, look=0.1)
        running = asyncio.create_task(child.run())
        while not log.exists() or log.read_bytes() != b"later\n":
            await asyncio.sleep(0.02)
        await child.stop(5)
        await running

    asyncio.run(main())
    assert (tmp_path / "child.log.1").stat().st_size == LOG_LIMIT + 11
