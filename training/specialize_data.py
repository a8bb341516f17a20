"""Rows a specialist learns from: instructions with responses, questions with choices, or plain domain text."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT_BLOCK = 2_000  # characters of plain text that make one row


class SpecializeError(ValueError):
    """A specialist that cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """`prompt` is "" for plain text. With `choices`, `response` is the right one of them."""

    prompt: str
    response: str
    choices: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out; `number` is its line in the file, from 1."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a file held: the rows to use, those left out, and how many were there twice."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    duplicates: int
    sha256: str

    def sources(self) -> dict[str, dict[str, object]]:
        """Rows of each source, with its licence where a row names one."""
        counted = Counter((row.source or "unnamed", row.licence) for row in self.rows)
        return {source: {"rows": count, "licence": licence} for (source, licence), count in sorted(counted.items())}


def read_corpus(path: Path, split: str | None = None) -> Corpus:
    """Read `.jsonl` (or `.jsonl.gz`) rows, or a `.txt` file of plain text.

    A JSON row has `instruction` and `response`; or `question`, `choices` and `answer_index`; or `text`. `source` and
    `licence` are kept as provenance; other keys are ignored. Rows that name another split than `split` are skipped.

    Raises:
        SpecializeError: the file cannot be read, or no row of it can be used.
    """
    if path.suffixes[-1:] not in ([".txt"], [".jsonl"]) and path.suffixes[-2:] != [".jsonl", ".gz"]:
        raise SpecializeError(f"{path} is neither .jsonl, .jsonl.gz nor .txt")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SpecializeError(f"{path} cannot be read: {error}") from error
    found: list[Row] = []
    bad: list[BadRow] = []
    for number, row in enumerate(_blocks(text) if path.suffix == ".txt" else _parsed(text, split), 1):
        if isinstance(row, Row):
            found.append(row)
        elif row:
            bad.append(BadRow(number, row))
    rows = tuple(dict.fromkeys(found))
    if not rows:
        first = f"; the first problem is in {bad[0]}" if bad else " and is empty"
        raise SpecializeError(f"{path} holds no usable row{first}")
    return Corpus(rows, tuple(bad), len(found) - len(rows), hashlib.sha256(content).hexdigest())


def split_rows(rows: Sequence[Row], heldout: int, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(train, held out): about `heldout` rows, never a prompt on both sides, whatever the order of `rows`."""

    def rank(row: Row) -> bytes:
        return hashlib.sha256(f"{seed}:{row.prompt or row.response}".encode()).digest()

    ordered = sorted(rows, key=rank)
    cut = heldout
    while 0 < cut < len(ordered) and rank(ordered[cut]) == rank(ordered[cut - 1]):
        cut += 1
    return tuple(ordered[cut:]), tuple(ordered[:cut])


def _parsed(text: str, split: str | None) -> Iterator[Row | str]:
    """A row a line, or what is wrong with it; "" for an empty line and for another split's."""
    for line in text.split("\n"):
        if not line.strip():
            yield ""
            continue
        try:
            data = json.loads(line)
            other = split is not None and isinstance(data, dict) and data.get("split", split) != split
            yield "" if other else _row(data)
        except (ValueError, RecursionError) as error:
            yield f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)


def _row(data: object) -> Row:
    """
    Raises:
        ValueError: what is wrong.
    """
    if not isinstance(data, dict):
        raise ValueError(f"is {type(data).__name__}, not an object")
    source, licence = (str(data.get(key) or "") for key in ("source", "licence"))
    if "choices" in data:
        return _choice_row(data, source, licence)
    if "text" in data:
        return Row("", _text(data, "text"), source=source, licence=licence)
    return Row(_text(data, "instruction"), _text(data, "response"), source=source, licence=licence)


def _choice_row(data: Mapping[str, object], source: str, licence: str) -> Row:
    choices, answer = data["choices"], data.get("answer_index")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError("choices is not a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise ValueError("two choices are the same")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"answer_index is {answer!r}; it must be 0 to {len(choices) - 1}")
    return Row(_text(data, "question"), choices[answer], tuple(choices), source, licence)


def _text(data: Mapping[str, object], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {'missing' if key not in data else 'empty or no text'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} holds a lone surrogate, which no tokenizer takes") from None
    return value


def _blocks(text: str) -> Iterator[Row | str]:
    """Paragraphs, joined until a row has TEXT_BLOCK characters."""
    block = ""
    for paragraph in text.split("\n\n"):
        block = f"{block}\n\n{paragraph}".strip()
        if len(block) >= TEXT_BLOCK:
            yield Row("", block)
            block = ""
    if block:
        yield Row("", block)
