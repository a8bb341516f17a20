"""Importers: recorded answers of others, as our samples and records, so that policies are judged without any GPU.

Every importer says what it does with a missing answer. `correct: null` or no such key (the model's file lacks the
question) gives no record: such a question is left out for every expert, so that all are compared on the same ones. An
answer that could not be read is a record with `answer` None and counts as wrong.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .records import Record, Sample
from .scoring import read_number

Row = Mapping[str, object]
Imported = tuple[list[Sample], list[Record]]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class OutcomesError(ValueError):
    """A file of recorded answers that cannot be used; the message names the file, the row and what was expected."""


def read_outcomes(file: Path, experts: Sequence[str] | None = None) -> Imported:
    """Import a file, its format told by its first row's keys; `experts` limits the models, None takes all.

    Raises:
        OutcomesError: unreadable, of no known format, a row with a missing key, or without one of the experts.
    """
    samples: list[Sample] = []
    records: list[Record] = []
    reader: Callable[[Row, Sequence[str] | None], tuple[Sample, list[Record]]] | None = None
    seen: set[str] = set()
    for number, row in _rows(file):
        try:
            reader = reader or _reader(row, file)
            sample, answers = reader(row, experts)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise OutcomesError(
                f"{file}:{number}: row does not fit the format ({type(error).__name__}: {error})"
            ) from error
        if sample.id in seen:
            raise OutcomesError(f"{file}:{number}: id {sample.id!r} appears twice")
        seen.add(sample.id)
        samples.append(sample)
        records += answers
    if not samples:
        raise OutcomesError(f"{file} has no rows")
    return samples, records


def _reader(row: Row, file: Path) -> Callable[[Row, Sequence[str] | None], tuple[Sample, list[Record]]]:
    for key, reader in _READERS.items():
        if key in row:
            return reader
    raise OutcomesError(f"{file}: no known format; a row must have one of the keys {list(_READERS)}")


def _mmlu_pro(row: Row, experts: Sequence[str] | None) -> tuple[Sample, list[Record]]:
    """MMLU-Pro: one extractor for all models (`correct_uniform`), the newest key; unread answers are wrong."""
    correct, answers = _mapping(row["correct_uniform"]), _mapping(row["pred_uniform"])
    choices = _texts(row["options"])
    subject = str(row["src"]).removeprefix("ori_mmlu-")
    sample = Sample(
        id=f"mmlupro-{row['question_id']}",
        prompt=str(row["question"]),
        domain=str(row["category"]),
        target=str(row["answer"]),
        choices=choices,
        subject=subject,
    )
    return sample, [
        _record(sample, name, correct[name], answers[name])
        for name in experts or correct
        if correct.get(name) is not None
    ]


def _med(row: Row, experts: Sequence[str] | None) -> tuple[Sample, list[Record]]:
    """Medical sets: the data set is the domain; tokens and seconds are recorded. Every answer could be read."""
    correct, answers = _mapping(row["correct"]), _mapping(row["pred"])
    tokens, seconds = _mapping(row["tokens"]), _mapping(row["seconds"])
    sample = Sample(
        id=str(row["id"]),
        prompt=str(row["question"]),
        domain=str(row["dataset"]),
        target=str(row["answer"]),
        choices=tuple(map(str, _mapping(row["options"]).values())),
    )
    records = []
    for name in experts or correct:
        if correct.get(name) is not None:
            counts, taken = tokens.get(name) or [0, 0], seconds.get(name) or 0.0
            records.append(_record(sample, name, correct[name], answers[name], counts, float(str(taken))))
    return sample, records


def _gsm8k(row: Row, experts: Sequence[str] | None) -> tuple[Sample, list[Record]]:
    """GSM8K: `*_recheck`, because the shipped flags call '$20.00' wrong where the answer is 20. One domain: math.

    The answer is the last number of the response; it only serves to see which answers are equal.
    """
    sample = Sample(id=str(row["id"]), prompt=str(row["prompt"]), domain="math", target=str(row["gold"]))
    return sample, [
        _record(sample, name, row[f"{name}_recheck"], read_number(str(row[f"{name}_response"])))
        for name in experts or ("gpt4", "mixtral")
    ]


def _mmlu(row: Row, experts: Sequence[str] | None) -> tuple[Sample, list[Record]]:
    """MMLU by RouteLLM: direct answers, of which only right or wrong is known. Domain: our class; subject: MMLU's."""
    sample = Sample(
        id=str(row["id"]),
        prompt=str(row["question"]),
        domain=str(row["domain"]),
        target=LETTERS[int(str(row["answer_index"]))],
        choices=_texts(row["choices"]),
        subject=str(row["subject"]),
    )
    return sample, [_record(sample, name, row[name], "") for name in experts or ("gpt4", "mixtral")]


# The first key that a row has tells its format.
_READERS: dict[str, Callable[[Row, Sequence[str] | None], tuple[Sample, list[Record]]]] = {
    "correct_uniform": _mmlu_pro,
    "dataset": _med,
    "gpt4_recheck": _gsm8k,
    "gpt4": _mmlu,
}


def _record(
    sample: Sample, expert: str, correct: object, answer: object, tokens: object = (0, 0), seconds: float = 0.0
) -> Record:
    if correct not in (0, 1):
        raise TypeError(f"correct of {expert} is {correct!r}, not 0 or 1")
    if not isinstance(tokens, list | tuple):
        raise TypeError(f"tokens of {expert} are {tokens!r}, not [prompt, completion]")
    return Record(
        sample=sample.id,
        domain=sample.domain,
        target=expert,
        expert=expert,
        correct=bool(correct),
        answer=None if answer is None else str(answer),
        prompt_tokens=int(tokens[0]),
        completion_tokens=int(tokens[1]),
        seconds=seconds,
    )


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise OutcomesError(f"{file}:{number} is not a JSON object")
                yield number, row
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutcomesError(f"{file} cannot be read ({error})") from error


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:60]!r} is not an object")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:60]!r} is not a list")
    return tuple(map(str, value))
