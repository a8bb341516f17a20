"""Rows of data files: JSONL, CSV and Parquet, of a folder or of a data set on a model hub; a bad row is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..experts.datasets import DatasetError, hub_files, parse_hub_name

if TYPE_CHECKING:
    import pyarrow

FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
BATCH = 1_024

Record = Mapping[str, object]
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class DataError(ValueError):
    """Training data that cannot be used; the message names file, rows and what is wrong with them."""


def data_files(name: str) -> list[Path]:
    """The files that a name means: a file, the data files of a folder (not of folders in it), or owner/name on the hub.

    Raises:
        DataError: there is no such file, folder or data set, or no data file in it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(FORMATS))
        if not files:
            raise DataError(f"folder {path} holds no file of {', '.join(FORMATS)}")
        return files
    if path.exists():
        return [path]
    try:
        dataset = parse_hub_name(name)
        if dataset is None:
            raise DataError(f"{path} is no file; give one of {', '.join(FORMATS)}, a folder, or hf:owner/name")
        return hub_files(dataset)
    except DatasetError as error:
        raise DataError(str(error)) from error


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(row number from 1, columns) of each row of a file.

    Raises:
        DataError: the file is missing or of another format, or a row is not UTF-8 or cannot be parsed.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give one of {', '.join(FORMATS)}")
    name = path.name.lower()
    if not name.endswith(FORMATS):
        raise DataError(f"{path} has an unknown format; accepted: {', '.join(FORMATS)}")
    if name.endswith(".parquet"):
        yield from _parquet_records(path)
        return
    try:
        data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    parse = _json_records if ".jsonl" in name else _csv_records
    yield from parse(path, data.removeprefix(b"\xef\xbb\xbf"))


def _json_records(path: Path, data: bytes) -> Iterator[tuple[int, Record]]:
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


def _csv_records(path: Path, data: bytes) -> Iterator[tuple[int, Record]]:
    # Escaped bytes keep their place, so that the row they stand in can be named.
    text = io.StringIO(data.decode(errors="surrogateescape"), newline="")
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(text, strict=True)
        if _ESCAPED_BYTE.search("".join(reader.fieldnames or ())):
            raise DataError(f"{path}: the header is not UTF-8")
        for row, record in enumerate(reader, start=1):
            if None in record or None in record.values():
                raise DataError(f"{path}: row {row}: it has not as many fields as the header")
            if any(_ESCAPED_BYTE.search(value) for value in record.values()):
                raise DataError(f"{path}: row {row}: not UTF-8")
            yield row, record
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: broken CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'collegium[train]'") from error
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _class_names(file.schema_arrow)
            for batch in file.iter_batches(batch_size=BATCH):
                for record in _rows(path, batch, row):
                    row += 1
                    yield row, _named(path, row, record, names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file ({str(error).splitlines()[0]})") from error


def _rows(path: Path, batch: pyarrow.RecordBatch, before: int) -> list[dict[str, object]]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        for position in range(batch.num_rows):
            try:
                batch.slice(position, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: row {before + position + 1}: not UTF-8") from error
        raise


def _class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Names of the classes that the hub's `datasets` library stores as numbers, by column."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (ValueError, AttributeError):
        return {}


def _named(path: Path, row: int, record: dict[str, object], names: Mapping[str, list[str]]) -> Record:
    """The record with classes by name instead of by number; -1 means none."""
    for column, classes in names.items():
        number = record.get(column)
        if isinstance(number, int):
            if not -1 <= number < len(classes):
                raise DataError(f"{path}: row {row}: {column!r} is class {number} of {len(classes)}")
            record[column] = classes[number] if number >= 0 else None
    return record
