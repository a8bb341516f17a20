"""Texts for adding a class: its examples, and prompts of the old classes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..router.text import bounded
from .data import Columns, DataError
from .readers import data_files, read_records

OWN_PROMPTS = Path(__file__).parent / "prompts" / "own.jsonl"
OWN_COLUMNS = Columns(label="domain")
"""Prompts that come with collegium, in the starter's domains."""


def read_examples(data: str, columns: Columns) -> list[str]:
    """The texts of all rows; a label is not asked for.

    Raises:
        DataError: a row cannot be read, or has no text.
    """
    return [text for text, _ in _texts(data, columns)]


def read_old_prompts(data: str, columns: Columns, labels: Collection[str], new: str) -> list[str]:
    """Prompts of the old labels: rows of other labels are left out, unless no row has one of the old labels.

    Raises:
        DataError: a row cannot be read, or has no text.
    """
    rows = _texts(data, columns)
    labelled = any(label in labels for _, label in rows)
    return [text for text, label in rows if (label in labels if labelled else label != new)]


def _texts(data: str, columns: Columns) -> list[tuple[str, object]]:
    found = []
    for file in data_files(data):
        for row, record in read_records(file):
            text = record.get(columns.text)
            if not isinstance(text, str) or not bounded(text):
                problem = "there is no column" if columns.text not in record else "no text in column"
                raise DataError(f"{file}: row {row}: {problem} {columns.text!r}")
            found.append((bounded(text), record.get(columns.label)))
    return found
