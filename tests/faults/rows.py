"""The rows of the fault catalogue as docs/faults.md has them: what shows each of them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "faults.md"
# How many rows the catalogue has under each letter.
COUNTS = {"A": 30, "B": 12, "C": 34, "D": 18, "E": 12, "F": 19, "G": 12, "H": 8}
HOW = ("tested", "by construction", "later", "not done")

_ROW = re.compile(r"\| ([A-H]\d\d) \| (.+?) \| (.+?) \| (.+) \|")
_TEST = re.compile(r"`([\w/]+)::(\w+)`")


@dataclass(frozen=True)
class Row:
    """`tests` are pairs of a file under tests/ and a function in it; `why` is what is said besides."""

    id: str
    fault: str
    how: str
    tests: tuple[tuple[Path, str], ...]
    why: str


def rows(page: Path = PAGE) -> list[Row]:
    """In the page's order."""
    return [_row(*found.groups()) for line in page.read_text().splitlines() if (found := _ROW.fullmatch(line))]


def _row(name: str, fault: str, how: str, shown: str) -> Row:
    tests = tuple((_file(file), f"test_{function}") for file, function in _TEST.findall(shown))
    return Row(name, fault, how, tests, _TEST.sub("", shown).strip(" ,;"))


def _file(short: str) -> Path:
    """faults/signals -> tests/faults/test_signals.py"""
    path = TESTS / short
    return path.with_name(f"test_{path.name}.py")


def functions(file: Path) -> frozenset[str]:
    """Test functions of a module, which is read and not imported."""
    return frozenset(node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
