"""The table every evaluation computes on: samples by experts, from records of a live run or an import."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import Record, Sample

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Price:
    """What an answer costs: `question` each, and `read` and `written` a million tokens."""

    question: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def of(self, record: Record) -> float:
        tokens = (self.read * record.prompt_tokens + self.written * record.completion_tokens) / 1e6
        return self.question + tokens


def parse_prices(text: str) -> dict[str, Price]:
    """`a=8,b=0.15/0.6`: 8 a question, or 0.15 and 0.6 a million tokens read and written.

    Raises:
        ValueError: an item of another form, or a negative number.
    """
    prices = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        read, slash, written = value.partition("/")
        try:
            price = Price(read=float(read), written=float(written)) if slash else Price(question=float(read))
        except ValueError as error:
            raise ValueError(f"price {item!r} is not name=number or name=number/number") from error
        if min(price.question, price.read, price.written) < 0:
            raise ValueError(f"price {item!r} is negative")
        prices[name.strip()] = price
    return prices


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """Answers of n samples by m experts, without a hole: `correct` and `cost` (n, m), `answers` n tuples of m.

    `dropped` counts the samples left out because an expert had no answer to them, `unread` the answers of each expert
    that the scorer could not read (they count as wrong).
    """

    samples: tuple[Sample, ...]
    experts: tuple[str, ...]
    correct: Bools
    cost: Floats
    answers: tuple[tuple[str | None, ...], ...]
    dropped: int
    unread: tuple[int, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted({sample.domain for sample in self.samples}))

    @property
    def domain_index(self) -> Ints:
        """(n,) index into `domains`."""
        position = {domain: index for index, domain in enumerate(self.domains)}
        return np.array([position[sample.domain] for sample in self.samples], dtype=np.int64)

    def column(self, expert: str) -> int:
        """Position of an expert.

        Raises:
            ValueError: the table has no such expert.
        """
        if expert not in self.experts:
            raise ValueError(f"no expert {expert!r} in the records; there are {', '.join(self.experts)}")
        return self.experts.index(expert)


def build_table(
    samples: Sequence[Sample],
    records: Sequence[Record],
    experts: Sequence[str],
    prices: Mapping[str, Price] | None = None,
) -> Table:
    """Join samples and records.

    `prices` replaces the recorded cost of each expert it names. Samples that one of the experts did not answer are
    dropped, for all of them.

    Raises:
        ValueError: an expert has no record at all, is named twice, or no sample is left.
    """
    if len(set(experts)) != len(experts) or not experts:
        raise ValueError(f"experts {list(experts)}: name each once, and at least one")
    found: dict[tuple[str, str], Record] = {
        (record.sample, record.target): record for record in records if record.correct is not None
    }
    available = {record.target for record in records}
    absent = [expert for expert in experts if expert not in available]
    if absent:
        raise ValueError(f"no record of {', '.join(absent)}; there are {', '.join(sorted(available))}")
    kept = [sample for sample in samples if all((sample.id, expert) in found for expert in experts)]
    if not kept:
        raise ValueError("no sample was answered by every expert")
    rows = [[found[sample.id, expert] for expert in experts] for sample in kept]
    costs = np.array([[record.cost for record in row] for row in rows], dtype=np.float64)
    for position, expert in enumerate(experts):
        if prices and expert in prices:
            costs[:, position] = [prices[expert].of(row[position]) for row in rows]
    return Table(
        samples=tuple(kept),
        experts=tuple(experts),
        correct=np.array([[bool(record.correct) for record in row] for row in rows]),
        cost=costs,
        answers=tuple(tuple(record.answer for record in row) for row in rows),
        dropped=len(samples) - len(kept),
        unread=tuple(sum(row[position].answer is None for row in rows) for position in range(len(experts))),
    )


def normalised(text: str) -> str:
    """Text reduced to case-folded words, so that the same question with other punctuation is the same."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def fold_of(samples: Sequence[Sample], folds: int, seed: int = 0) -> Ints:
    """(n,) fold of each sample; samples with the same question text share one.

    Raises:
        ValueError: fewer than 2 folds, or fewer distinct questions than folds.
    """
    groups: dict[str, int] = {}
    of_sample = np.array([groups.setdefault(normalised(sample.prompt), len(groups)) for sample in samples])
    if folds < 2 or len(groups) < folds:
        raise ValueError(
            f"{folds} folds of {len(groups)} distinct questions; give 2 folds or more, and a question each"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    return np.asarray(order[of_sample] % folds, dtype=np.int64)
