"""Labelled prompts from JSONL or CSV, checked row by row before anything is trained."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..router.text import bounded

MIN_LABELS = 2
MIN_ROWS_PER_LABEL = 8
MAX_LABEL_CHARACTERS = 100
SHOWN_PROBLEMS = 5
FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")


class DataError(ValueError):
    """Training data that cannot be used; the message names file, rows and what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One labelled prompt. `row` counts from 1; `source` names where it came from, if the file says so."""

    row: int
    text: str
    label: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    text: str = "text"
    label: str = "label"
    source: str = "source"


def load_prompts(path: Path, columns: Columns = Columns()) -> list[Prompt]:
    """All prompts of a file, normalised and cut as the router reads them.

    Raises:
        DataError: it cannot be read, a row is bad, there are fewer than 2 labels, or a label with fewer than 8 rows.
    """
    problems: list[str] = []
    prompts: list[Prompt] = []
    for row, record in read_records(path):
        try:
            prompts.append(_prompt(row, record, columns))
        except DataError as error:
            problems.append(f"row {row}: {error}")
    _refuse(path, problems)
    check_labels(prompts, path.name)
    return prompts


def read_records(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(row number, columns) of each row.

    Raises:
        DataError: the file is missing or of another format, or a row is not UTF-8 or not JSON.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give one of {', '.join(FORMATS)}")
    name = path.name.lower().removesuffix(".gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if name.endswith(".jsonl"):
        yield from _json_records(path, data.removeprefix(b"\xef\xbb\xbf"))
    elif name.endswith(".csv"):
        yield from _csv_records(path, data.removeprefix(b"\xef\xbb\xbf"))
    else:
        raise DataError(f"{path} has an unknown format; accepted: {', '.join(FORMATS)}")


def check_labels(prompts: Sequence[Prompt], where: str) -> None:
    """Refuse labels that cannot be learned.

    Raises:
        DataError: fewer than 2 labels, a label with fewer than 8 rows, labels that differ in case or blanks only.
    """
    counts = Counter(prompt.label for prompt in prompts)
    if len(counts) < MIN_LABELS:
        raise DataError(
            f"{where} has {len(counts)} label{'s' * (len(counts) != 1)}; a router needs at least {MIN_LABELS}"
        )
    folded: dict[str, str] = {}
    for label in sorted(counts):
        twin = folded.setdefault("".join(label.casefold().split()), label)
        if twin != label:
            raise DataError(f"{where}: labels {twin!r} and {label!r} differ in case or blanks only; make them one")
    rare = [f"{label!r} has {count}" for label, count in sorted(counts.items()) if count < MIN_ROWS_PER_LABEL]
    if rare:
        raise DataError(
            f"{where}: a label needs at least {MIN_ROWS_PER_LABEL} rows; {', '.join(rare[:SHOWN_PROBLEMS])}"
        )


def data_hash(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over labels and texts, in whatever order the rows stand."""
    digest = hashlib.sha256()
    for line in sorted(f"{prompt.label}\x00{prompt.text}" for prompt in prompts):
        digest.update(hashlib.sha256(line.encode()).digest())
    return digest.hexdigest()


def _prompt(row: int, record: Mapping[str, object], columns: Columns) -> Prompt:
    text, label = (_value(record, column) for column in (columns.text, columns.label))
    text = bounded(text)
    if not text:
        raise DataError(f"{columns.text!r} is empty")
    label = label.strip()
    if not label or len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise DataError(f"{columns.label!r} must be 1 to {MAX_LABEL_CHARACTERS} printable characters")
    source = record.get(columns.source)
    return Prompt(row, text, label, source if isinstance(source, str) and source else None)


def _value(record: Mapping[str, object], column: str) -> str:
    if column not in record:
        raise DataError(f"there is no column {column!r}; there are {', '.join(map(repr, sorted(record))) or 'none'}")
    value = record[column]
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {type(value).__name__}, not text")
    return value


def _json_records(path: Path, data: bytes) -> Iterator[tuple[int, Mapping[str, object]]]:
    for row, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: row {row}: not UTF-8 at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: row {row}: broken JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {row}: {type(record).__name__}, not a JSON object")
        yield row, record


def _csv_records(path: Path, data: bytes) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: row {row}: not UTF-8 at byte {error.start}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row, record in enumerate(reader, start=1):
            if None in record or None in record.values():
                raise DataError(f"{path}: row {row}: it has not as many fields as the header")
            yield row, record
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: broken CSV ({error})") from error


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS])
        raise DataError(f"{path}: {shown}" + (f"; and {more} more" if more > 0 else ""))
