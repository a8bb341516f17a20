"""Labelled prompts of data files, checked row by row before anything is trained."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..router.text import bounded
from .labels import MIN_ROWS_PER_LABEL, label_problem
from .readers import FORMATS, DataError, Record, data_files, read_records

__all__ = [
    "FORMATS",
    "MIN_ROWS_PER_LABEL",
    "Columns",
    "DataError",
    "Prompt",
    "check_labels",
    "data_hash",
    "load_prompts",
    "read_prompts",
    "read_records",
]

MAX_LABEL_CHARACTERS = 100
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Prompt:
    """One labelled prompt. `row` counts from 1, in `file` where several were read; `source` says where it came from."""

    row: int
    text: str
    label: str
    source: str | None = None
    file: str = ""

    @property
    def where(self) -> str:
        return f"{self.file} row {self.row}".lstrip()


@dataclass(frozen=True, slots=True)
class Columns:
    text: str = "text"
    label: str = "label"
    source: str = "source"


def load_prompts(
    data: Path | str | Sequence[Path | str], columns: Columns = Columns(), labels: Collection[str] = ()
) -> list[Prompt]:
    """`read_prompts`, and their labels can be learned. `labels`: all that there should be; empty for any.

    Raises:
        DataError: as `read_prompts`; fewer than 2 labels, one with fewer than 8 rows, one spelt nearly as another.
    """
    prompts = read_prompts(data, columns, labels)
    check_labels(prompts, _shown(data), labels)
    return prompts


def read_prompts(
    data: Path | str | Sequence[Path | str], columns: Columns = Columns(), labels: Collection[str] = ()
) -> list[Prompt]:
    """All prompts of files, folders or data sets of the hub, normalised and cut as the router reads them.

    Where several files are read, a file's name is the source of its rows that name none.

    Raises:
        DataError: something cannot be read, a row is bad, or its label is none of `labels`.
    """
    given = [data] if isinstance(data, Path | str) else list(data)
    files = [file for one in given for file in data_files(str(one))]
    if len(set(files)) < len(files):
        raise DataError(f"{_shown(data)}: a file is given twice")
    return [prompt for file in files for prompt in _file_prompts(file, columns, labels, file.name * (len(files) > 1))]


def check_labels(prompts: Sequence[Prompt], where: str, confirmed: Collection[str] = ()) -> None:
    """Refuse labels that cannot be learned.

    Raises:
        DataError: fewer than 2 labels, one with fewer than 8 rows, two that are one but for case or a slip.
    """
    first: dict[str, str] = {}
    for prompt in prompts:
        first.setdefault(prompt.label, prompt.where)
    problem = label_problem(Counter(prompt.label for prompt in prompts), first, confirmed)
    if problem:
        raise DataError(f"{where}: {problem}")


def data_hash(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over labels and texts, in whatever order the rows stand."""
    digest = hashlib.sha256()
    for line in sorted(f"{prompt.label}\x00{prompt.text}" for prompt in prompts):
        digest.update(hashlib.sha256(line.encode()).digest())
    return digest.hexdigest()


def _file_prompts(path: Path, columns: Columns, labels: Collection[str], name: str) -> list[Prompt]:
    problems: list[str] = []
    prompts: list[Prompt] = []
    for row, record in read_records(path):
        try:
            prompt = _prompt(row, record, columns, name)
            if labels and prompt.label not in labels:
                raise DataError(f"label {prompt.label!r} is none of {', '.join(sorted(labels))}")
            prompts.append(prompt)
        except DataError as error:
            problems.append(f"row {row}: {error}")
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS])
        raise DataError(f"{path}: {shown}" + (f"; and {more} more" if more > 0 else ""))
    return prompts


def _prompt(row: int, record: Record, columns: Columns, name: str) -> Prompt:
    text, label = _value(record, columns.text), _value(record, columns.label)
    if not isinstance(text, str):
        raise DataError(f"{columns.text!r} is {_type(text)}, not text")
    text = bounded(text)
    if not text:
        raise DataError(f"{columns.text!r} is empty")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str):
        raise DataError(f"{columns.label!r} is {_type(label)}, not a label")
    label = label.strip()
    if not label or len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise DataError(f"{columns.label!r} must be 1 to {MAX_LABEL_CHARACTERS} printable characters")
    source = record.get(columns.source)
    return Prompt(row, text, label, source if isinstance(source, str) and source else name or None, name)


def _value(record: Record, column: str) -> object:
    if column not in record:
        raise DataError(f"there is no column {column!r}; there are {', '.join(map(repr, sorted(record))) or 'none'}")
    return record[column]


def _type(value: object) -> str:
    return "missing" if value is None else type(value).__name__


def _shown(data: Path | str | Sequence[Path | str]) -> str:
    given = [data] if isinstance(data, Path | str) else data
    return ", ".join(Path(one).name if Path(one).exists() else str(one) for one in given)
