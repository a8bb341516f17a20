"""A plugin: `pytest --leaks ...` logs all that can be logged and then searches all that was written for what was said.

Sought in logs, captured output and every file that the tests left are the prompts and answers of the fault laboratory,
which look like nothing else, and keys.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from collegium.serve.log import JsonLines, configure

SAID = re.compile(rb"\d[\w-]{0,40}(?: python sum,)? \d{1,4} tokens|(?: alpha| beta| gamma| delta){2}|\bsk-[a-z]+-\w+")
DEBUG = "COLLEGIUM_TEST_DEBUG"  # edge processes of the tests log everything where it is set


def log_everything() -> None:
    """For an edge process of the tests: what it can log, where this plugin is at work, else what it does log."""
    configure()
    if DEBUG in os.environ:
        configure(logging.DEBUG)
        logging.getLogger().setLevel(logging.DEBUG)


class Leaks:
    """What the tests wrote under `folder`, and where something was found that they should not have."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._found: list[str] = []
        self._searched = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for title, text in report.sections:
            self._search(f"{report.nodeid}, {title}", text.encode(errors="replace"))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for file in sorted(self.folder.rglob("*")) if self.folder else ():
            if file.is_file() and not file.is_symlink():
                self._search(str(file.relative_to(self.folder or file)), file.read_bytes())
        if self._found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("what was written")
        terminalreporter.line(f"{self._searched / 1e6:.1f} MB searched; {len(self._found)} places with what was said")
        for place in self._found[:50]:
            terminalreporter.line(place)

    def _search(self, place: str, text: bytes) -> None:
        self._searched += len(text)
        if found := SAID.search(text):
            around = text[max(found.start() - 80, 0) : found.end() + 40]
            self._found.append(f"{place}: {around.decode(errors='replace')!r}")


LEAKS = Leaks()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LEAKS)


@pytest.fixture(scope="session", autouse=True)
def everything_is_logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    LEAKS.folder = tmp_path_factory.getbasetemp()
    handler = logging.FileHandler(LEAKS.folder / "debug.log")
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    os.environ[DEBUG] = "1"
    yield
    root.removeHandler(handler)
    handler.close()
