"""The plugin that searches what a run of tests wrote: it must find what it is there to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("print('c08-3 60 tokens')", "Captured stdout"),
        ("logging.getLogger('some.library').debug('load-7 python sum, 20 tokens')", "debug.log"),
        ("(tmp_path / 'kept').write_text(' beta gamma')", "kept"),
        ("(tmp_path / 'kept').write_text('sk-kill-test')", "kept"),
        ("logging.getLogger('collegium.edge').info('tokens of an expert')", ""),
    ],
)
def test_what_was_said_is_found_wherever_it_was_written(tmp_path: Path, line: str, place: str) -> None:
    file = tmp_path / "test_writes.py"
    file.write_text(f"import logging\n\n\ndef test_it(tmp_path):\n    {line}\n")
    plugins = ["-p", "leaks", "-p", "no:cacheprovider", "-p", "no:looptime_plugin"]
    command = [sys.executable, "-m", "pytest", *plugins, "--rootdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    ended = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "run"), str(file)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "1 passed" in ended.stdout and ended.returncode == (1 if place else 0), ended.stdout
    assert (" 0 places with what was said" in ended.stdout) == (not place) and place in ended.stdout
