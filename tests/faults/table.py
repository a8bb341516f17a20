"""A plain table on the terminal, in Markdown, past pytest's capture."""

from __future__ import annotations

import pytest


class Table:
    """Rows under a title; `show` prints them."""

    def __init__(self, title: str, *columns: str) -> None:
        self._lines = [title, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]

    def row(self, *cells: object) -> None:
        self._lines.append("| " + " | ".join(map(str, cells)) + " |")

    def show(self, capsys: pytest.CaptureFixture[str], *more: str) -> None:
        with capsys.disabled():
            print("\n" + "\n".join([*self._lines, *more]))
