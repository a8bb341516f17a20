"""Tasks: samples from JSONL, CSV or Parquet, each row checked, and the prompts made of them."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..experts.datasets import DatasetError
from .hub import known_tasks, task_files
from .records import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = Mapping[str, object]
KINDS = ("choice", "math", "code", "perplexity")


class TaskError(ValueError):
    """A task that cannot be used; the message names the file, the row and what is wrong."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a question is put: `shots` worked examples first, `reasoning` asks for the steps before the answer."""

    shots: int = 0
    reasoning: bool = False


def load_samples(
    task: Path | str, kind: str, limit: int | None = None, seed: int = 0, split: str | None = None
) -> list[Sample]:
    """Read a task's rows; `limit` draws that many at random, by `seed`; rows that name another `split` are passed over.

    `task` is a file, a short name of hub.known_tasks, or hf:owner/name[/configuration][:split]. Keys: `question` (also
    `prompt`, `text`), `domain` (also `category`, `subject`), `id` optional. A choice row has `choices` (also `options`)
    and `answer_index` or `answer` (a letter); a maths row `answer`; a code row `tests`, Python that raises where the
    answer is wrong; a perplexity row only its text.

    Raises:
        TaskError: unreadable, an unknown kind, a missing key, an answer outside the choices, or an id twice.
    """
    if kind not in KINDS:
        raise TaskError(f"task kind {kind!r} is unknown; accepted: {', '.join(KINDS)}")
    files, mapped = _source(str(task))
    samples: list[Sample] = []
    seen: set[str] = set()
    for file in files:
        for number, row in enumerate(_rows(file), start=1):
            if split is not None and row.get("split", split) != split:
                continue
            where = f"{file}, row {number}"
            sample = _sample(_read(row, mapped, where), kind, f"{file.name.partition('.')[0]}-{number}", where)
            if sample.id in seen:
                raise TaskError(f"{where}: id {sample.id!r} appears twice")
            seen.add(sample.id)
            samples.append(sample)
    if not samples:
        raise TaskError(f"{task} has no rows")
    if limit is not None and limit < len(samples):
        samples = random.Random(seed).sample(samples, limit)  # noqa: S311 - a draw that can be repeated, no secret
    return samples


def choice_prompt(sample: Sample, examples: Sequence[Sample] = (), style: Style = Style()) -> str:
    """A multiple-choice question with lettered choices, ending where the answer belongs."""
    shown = [f"{_stem(example)}\nAnswer: {example.target}" for example in examples[: style.shots]]
    ask = "Think step by step, then end with 'Answer: X'." if style.reasoning else "Answer:"
    return "\n\n".join([*shown, f"{_stem(sample)}\n{ask}"])


def cloze_prompt(sample: Sample, examples: Sequence[Sample] = (), style: Style = Style()) -> str:
    """A question without its choices, ending where the text of one belongs: lm-evaluation-harness's form of ARC."""
    shown = [
        f"Question: {example.prompt}\nAnswer: {example.choices[LETTERS.index(example.target)]}"
        for example in examples[: style.shots]
    ]
    return "\n\n".join([*shown, f"Question: {sample.prompt}\nAnswer:"])


def open_prompt(sample: Sample, examples: Sequence[Sample] = (), style: Style = Style()) -> str:
    """A maths question; with reasoning it asks for the steps and a boxed result."""
    shown = [f"Question: {example.prompt}\nAnswer: {example.target}" for example in examples[: style.shots]]
    ask = "Think step by step and put the final result in \\boxed{}." if style.reasoning else "Answer:"
    return "\n\n".join([*shown, f"Question: {sample.prompt}\n{ask}"])


def _stem(sample: Sample) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, sample.choices, strict=False)]
    return "\n".join([sample.prompt, *lines])


def _source(task: str) -> tuple[list[Path], Callable[[Row], Row] | None]:
    """Files of a task and what turns their rows into ours, None where they are ours already."""
    if Path(task).is_file():
        return [Path(task)], None
    try:
        found = task_files(task)
    except DatasetError as error:
        raise TaskError(str(error)) from error
    if found is None:
        raise TaskError(
            f"{task} is no file; give one, hf:owner/name[/configuration][:split], or {', '.join(known_tasks())}"
        )
    return found


def _read(row: Row, mapped: Callable[[Row], Row] | None, where: str) -> Row:
    if mapped is None:
        return row
    try:
        return mapped(row)
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{where}: not as this data set's rows are ({type(error).__name__}: {error})") from error


def _sample(row: Row, kind: str, fallback: str, where: str) -> Sample:
    prompt = str(_first(row, ("question", "prompt", "text"), where))
    if not prompt.strip():
        raise TaskError(f"{where}: the question is empty")
    domain = str(next((row[key] for key in ("domain", "category", "subject") if row.get(key)), "all"))
    choices: tuple[str, ...] = ()
    if kind == "choice":
        choices = _choices(_first(row, ("choices", "options"), where), where)
        target = _letter(row, len(choices), where)
    elif kind == "perplexity":
        target = ""
    else:
        target = str(_first(row, ("tests",) if kind == "code" else ("answer", "gold"), where))
    return Sample(str(row.get("id") or fallback), prompt, domain, target, choices, str(row.get("subject") or ""))


def _first(row: Row, keys: Sequence[str], where: str) -> object:
    for key in keys:
        if row.get(key) not in (None, ""):
            return row[key]
    raise TaskError(f"{where}: none of the keys {list(keys)}; it has {sorted(map(str, row))}")


def _choices(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):  # a CSV cell holds the list as JSON
        try:
            return _choices(json.loads(value), where)
        except json.JSONDecodeError as error:
            raise TaskError(f"{where}: choices {value[:60]!r} are not a JSON list") from error
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise TaskError(f"{where}: choices must be a list of 2 to {len(LETTERS)}")
    return tuple(map(str, value))


def _letter(row: Row, count: int, where: str) -> str:
    index, answer = row.get("answer_index"), row.get("answer")
    if index not in (None, ""):
        position = int(str(index)) if str(index).lstrip("-").isdigit() else -1
    else:
        position = LETTERS.find(str(answer).strip().upper()) if answer and len(str(answer).strip()) == 1 else -1
    if not 0 <= position < count:
        raise TaskError(f"{where}: answer {index if index is not None else answer!r} is not one of the {count} choices")
    return LETTERS[position]


def _rows(file: Path) -> Iterator[Row]:
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet as parquet

            yield from parquet.read_table(file).to_pylist()
            return
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            if name.endswith(".csv"):
                yield from csv.DictReader(lines)
                return
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TaskError(f"{file}, row {number} is not a JSON object")
                yield row
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise TaskError(f"{file} cannot be read ({error})") from error
