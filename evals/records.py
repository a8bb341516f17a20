"""Records: one line for everything that was answered and judged, and the folder a run keeps them in."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType


class RecordError(ValueError):
    """A run folder that cannot be read or continued; the message names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. `subject` is a finer class inside `domain`; `target` is the right answer in the scorer's form."""

    id: str
    prompt: str
    domain: str
    target: str
    choices: tuple[str, ...] = ()
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What one target made of one sample.

    `target` is the model that was asked (`auto` or an expert), `expert` the one that answered. `answer` is what the
    scorer read, or None where it could read nothing, which counts as wrong. `correct` is None where there was no answer
    at all and `error` says why: such a row is asked again by the next start. `logprobs` belong to the choices, in order
    (nats, summed over the choice's tokens). `seconds` is wall time, `cost` US dollars or, where the pool has no prices,
    tokens times billions of active parameters.
    """

    sample: str
    domain: str
    target: str
    expert: str
    correct: bool | None
    answer: str | None = None
    output: str = ""
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    router: str = ""
    error: str = ""


class RunFolder:
    """A run on disk: run.json (settings), samples.jsonl and records.jsonl.

    A second start finds what is there and adds what is missing. One process writes at a time.
    """

    def __init__(self, path: Path) -> None:
        """Use `path`, which need not exist yet."""
        self.path = path

    def open(self, settings: Mapping[str, object], samples: Iterable[Sample]) -> RecordWriter:
        """Begin the run, or continue it.

        Raises:
            RecordError: the folder holds a run with other settings or samples, or another process writes to it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        _settle(self.path / "run.json", json.dumps(dict(settings), indent=2, sort_keys=True) + "\n")
        _settle(self.path / "samples.jsonl", "".join(_line(sample) for sample in samples))
        self.records()  # a broken line is refused before anything is added to it
        return RecordWriter(self.path / "records.jsonl")

    def settings(self) -> dict[str, object]:
        """The run's settings, as they were given to `open`."""
        try:
            loaded = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.path} is no run folder: run.json cannot be read ({error})") from error
        if not isinstance(loaded, dict):
            raise RecordError(f"{self.path / 'run.json'} holds no JSON object")
        return loaded

    def samples(self) -> list[Sample]:
        return [_sample(row, where) for row, where in _rows(self.path / "samples.jsonl")]

    def records(self) -> list[Record]:
        """The last record of each (sample, target), in the order of their first appearance."""
        file = self.path / "records.jsonl"
        if not file.exists():
            return []
        latest: dict[tuple[str, str], Record] = {}
        for row, where in _rows(file):
            record = _record(row, where)
            latest[record.sample, record.target] = record
        return list(latest.values())


class RecordWriter:
    """Appends records, each as one write of one whole line; a context manager that holds the folder's lock."""

    def __init__(self, file: Path) -> None:
        """Open `file` for appending and cut off a line that a killed writer left unfinished."""
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise RecordError(f"another process writes to {file}") from error
        self._size = _whole_lines(file)
        os.ftruncate(self._descriptor, self._size)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, record: Record) -> None:
        """Add one record.

        Raises:
            RecordError: the disk is full or fails; the file then ends with the record before.
        """
        line = _line(record).encode()
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise RecordError(f"{self._file} cannot be written ({error.strerror}); start again to resume") from error
        if written < len(line):
            os.ftruncate(self._descriptor, self._size)
            raise RecordError(f"{self._file} cannot be written (disk full); start again to resume")
        self._size += written

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def _line(value: Sample | Record) -> str:
    row = {key: item for key, item in asdict(value).items() if item not in ("", (), 0.0) or key in _REQUIRED}
    return json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n"


_REQUIRED = frozenset({"id", "prompt", "domain", "target", "sample", "expert", "correct", "answer"})


def _settle(file: Path, content: str) -> None:
    """Write `file` atomically, or check that it holds `content` already."""
    if file.exists():
        if file.read_text(encoding="utf-8") != content:
            raise RecordError(f"{file} belongs to another run (its content differs); choose a new folder")
        return
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(file)


def _whole_lines(file: Path) -> int:
    content = file.read_bytes()
    return content.rfind(b"\n") + 1


def _rows(file: Path) -> Iterator[tuple[dict[str, object], str]]:
    """Whole lines as objects, each with its place; an unfinished last line is left out."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror})") from error
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{where} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise RecordError(f"{where} is not a JSON object")
        yield row, where


def _sample(row: dict[str, object], where: str) -> Sample:
    _check_keys(row, Sample, where)
    choices = row.get("choices", [])
    if not isinstance(choices, list):
        raise RecordError(f"{where}: choices is not a list")
    texts = {key: str(row.get(key, "")) for key in ("id", "prompt", "domain", "target", "subject")}
    return Sample(choices=tuple(map(str, choices)), **texts)


def _record(row: dict[str, object], where: str) -> Record:
    _check_keys(row, Record, where)
    correct, answer, logprobs = row["correct"], row["answer"], row.get("logprobs", [])
    if correct is not None and not isinstance(correct, bool):
        raise RecordError(f"{where}: correct is {correct!r}; accepted: true, false, null")
    if not isinstance(logprobs, list) or not all(isinstance(value, int | float) for value in logprobs):
        raise RecordError(f"{where}: logprobs is not a list of numbers")
    numbers = {key: row.get(key, 0) for key in ("prompt_tokens", "completion_tokens", "seconds", "cost")}
    for key, value in numbers.items():
        if not isinstance(value, int | float):
            raise RecordError(f"{where}: {key} is {value!r}, not a number")
    return Record(
        correct=correct,
        answer=None if answer is None else str(answer),
        logprobs=tuple(map(float, logprobs)),
        prompt_tokens=int(str(numbers["prompt_tokens"])),
        completion_tokens=int(str(numbers["completion_tokens"])),
        seconds=float(str(numbers["seconds"])),
        cost=float(str(numbers["cost"])),
        **{key: str(row.get(key, "")) for key in ("sample", "domain", "target", "expert", "output", "router", "error")},
    )


def _check_keys(row: dict[str, object], kind: type[Sample] | type[Record], where: str) -> None:
    known = {field.name for field in fields(kind)}
    unknown, missing = sorted(set(row) - known), sorted(_REQUIRED & known - set(row))
    if unknown or missing:
        raise RecordError(f"{where}: unknown keys {unknown}, missing keys {missing}")
