"""What specialising costs: perplexity of every expert on every domain, choices scored, paired with the base.

`python -m collegium.training.specialize_report MODEL --adapter math=DIR --heldout math=FILE --mcq arc=FILE`
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .specialize_data import Row, SpecializeError, read_corpus, split_rows
from .specialize_model import load_base
from .specialize_save import write_json
from .specialize_tokens import Format, Sample, branch_logprobs, collate, encode, pack

RESAMPLES = 2_000
PACK = 1_024
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """A paired difference with its 95 % bootstrap interval over rows."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.1%} [{self.low:+.1%}, {self.high:+.1%}]"


@dataclass(frozen=True, slots=True)
class Cell:
    """An expert on a domain's held-out rows. `change` is of the perplexity, relative to the base's."""

    expert: str
    domain: str
    rows: int
    tokens: int
    loss_base: float
    loss: float
    change: Change

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def forgot(self) -> bool:
        """Clearly worse than the base."""
        return self.change.low > 0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """An expert on a multiple-choice task, by the choices' log-probabilities; `change` in accuracy.

    `scoring` is "sum" or "per character" (lm-evaluation-harness's acc and acc_norm).
    """

    expert: str
    task: str
    scoring: str
    questions: int
    base: float
    accuracy: float
    change: Change


@dataclass(frozen=True, slots=True)
class Report:
    cells: tuple[Cell, ...]
    accuracies: tuple[Accuracy, ...]


def perplexity_change(base: Floats, expert: Floats, tokens: Floats, seed: int = 0) -> Change:
    """Relative change of perplexity from `base` to `expert`: nats of each row, (n,), over `tokens`, (n,).

    Rows are resampled (Efron 1979), both experts' together; each draw weighs rows by their tokens, as perplexity does.
    """
    drawn = np.random.default_rng(seed).integers(0, len(base), (RESAMPLES, len(base)))
    ratios = np.exp((expert - base)[drawn].sum(1) / tokens[drawn].sum(1)) - 1
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Change(float(np.exp((expert - base).sum() / tokens.sum()) - 1), float(low), float(high))


def accuracy_change(base: Floats, expert: Floats, seed: int = 0) -> Change:
    """Difference of accuracy from right/wrong, (n,) each, rows resampled together."""
    drawn = np.random.default_rng(seed).integers(0, len(base), (RESAMPLES, len(base)))
    low, high = np.quantile((expert - base)[drawn].mean(1), [0.025, 0.975])
    return Change(float((expert - base).mean()), float(low), float(high))


def sample_logprobs(model: torch.nn.Module, samples: Sequence[Sample], label: str = "") -> list[tuple[float, ...]]:
    """Log-probabilities of every sample's branches, in nats, in the order of `samples`."""
    device = next(model.parameters()).device
    places = {id(sample): place for place, sample in enumerate(samples)}
    found: list[tuple[float, ...]] = [()] * len(samples)
    packs = pack(samples, PACK)
    console = Console(stderr=True)
    for group in track(packs, label, console=console, disable=not console.is_terminal, transient=True):
        inputs = {name: tensor.to(device) for name, tensor in collate([group]).items()}
        with torch.no_grad():
            logprobs = iter(branch_logprobs(model, inputs).tolist())
        for sample in group:
            found[places[id(sample)]] = tuple(next(logprobs) for _ in sample.branches)
    return found


class Bench:
    """The base and its adapters, one at a time active, measured on the same samples."""

    def __init__(self, model: str, adapters: Mapping[str, Path], revision: str | None = None) -> None:
        """Load everything once.

        Raises:
            SpecializeError: the model or an adapter cannot be loaded.
        """
        tokenizer, base, _ = load_base(model, revision)
        self.form = Format(tokenizer)
        self.names = tuple(adapters)
        self._model: PreTrainedModel | PeftModel = base
        for name, folder in adapters.items():
            self._load(name, folder)
        self._model.eval()

    def _load(self, name: str, folder: Path) -> None:
        try:
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(str(folder), adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SpecializeError(f"the adapter in {folder} cannot be loaded: {error}") from error

    def score(self, samples: Sequence[Sample], expert: str | None) -> list[tuple[float, ...]]:
        """Log-probabilities of the branches by an adapter, or by the base for None."""
        if isinstance(self._model, PeftModel) and expert is not None:
            self._model.set_adapter(expert)
        bare = isinstance(self._model, PeftModel) and expert is None
        with self._model.disable_adapter() if bare else nullcontext():
            return sample_logprobs(self._model, samples, expert or "base")

    def perplexities(self, domain: str, rows: Sequence[Row], max_length: int = 512) -> Iterator[Cell]:
        """The base's row of the matrix, then each adapter's."""
        samples = encode(rows, self.form, max_length).samples
        if not samples:
            raise SpecializeError(f"no held-out row of {domain} fits into {max_length} tokens")
        tokens = np.array([len(sample.branches[sample.right]) for sample in samples], dtype=np.float64)
        base = _nats(samples, self.score(samples, None))
        for expert in (None, *self.names):
            nats = base if expert is None else _nats(samples, self.score(samples, expert))
            yield Cell(
                expert or "base", domain, len(samples), int(tokens.sum()), float(base.sum() / tokens.sum()),
                float(nats.sum() / tokens.sum()), perplexity_change(base, nats, tokens),
            )  # fmt: skip

    def accuracies(self, task: str, rows: Sequence[Row], experts: Sequence[str]) -> Iterator[Accuracy]:
        """Accuracy on questions with choices, by both scorings."""
        questions = [row for row in rows if row.choices]
        samples = [sample for row in questions if (sample := self.form.sample(row, sys.maxsize)[0])]
        if not samples:
            raise SpecializeError(f"{task} holds no question with choices")
        base = self.score(samples, None)
        for expert in experts:
            scores = self.score(samples, expert)
            for scoring in ("sum", "per character"):
                before, after = (_right(questions, found, scoring) for found in (base, scores))
                yield Accuracy(
                    expert, task, scoring, len(samples), float(before.mean()), float(after.mean()),
                    accuracy_change(before, after),
                )  # fmt: skip


def _nats(samples: Sequence[Sample], logprobs: Sequence[tuple[float, ...]]) -> Floats:
    return np.array([-found[sample.right] for sample, found in zip(samples, logprobs, strict=True)])


def _right(rows: Sequence[Row], logprobs: Sequence[tuple[float, ...]], scoring: str) -> Floats:
    """1.0 where the right choice has the highest score, of equals the first."""
    right = []
    for row, scores in zip(rows, logprobs, strict=True):
        lengths = [len(choice) if scoring == "per character" else 1 for choice in row.choices]
        best = max(range(len(scores)), key=lambda index: scores[index] / lengths[index])
        right.append(float(row.choices[best] == row.response))
    return np.array(right)


def tables(report: Report) -> Iterator[Table]:
    """The matrix of perplexities, experts by domains, and the accuracies."""
    domains = list(dict.fromkeys(cell.domain for cell in report.cells))
    if domains:
        matrix = Table("expert", *domains, title="held-out perplexity (change against the base, 95 %)")
        for expert in dict.fromkeys(cell.expert for cell in report.cells):
            row = {cell.domain: cell for cell in report.cells if cell.expert == expert}
            matrix.add_row(expert, *(_shown(row[domain]) for domain in domains))
        yield matrix
    if report.accuracies:
        scored = Table("expert", "task", "scoring", "n", "base", "expert", "change", title="choices by log-probability")
        for a in report.accuracies:
            numbers = (str(a.questions), f"{a.base:.1%}", f"{a.accuracy:.1%}", str(a.change))
            scored.add_row(a.expert, a.task, a.scoring, *numbers)
        yield scored


def _shown(cell: Cell) -> str:
    if cell.expert == "base":
        return f"{cell.perplexity:.2f}"
    return f"{cell.perplexity:.2f} ({cell.change})" + (" forgot" if cell.forgot else "")


def _pairs(values: Sequence[str]) -> dict[str, Path]:
    pairs = [value.partition("=") for value in values]
    if unnamed := [name for name, equals, _ in pairs if not equals]:
        raise SpecializeError(f"{unnamed[0]!r} is no NAME=PATH")
    return {name: Path(path) for name, _, path in pairs}


def run(options: argparse.Namespace) -> Report:
    """Measure what the command line names; --json is written anew after each domain, so that a stop loses little.

    Raises:
        SpecializeError: a file, model or adapter that cannot be used.
    """
    bench = Bench(options.model, _pairs(options.adapter))
    cells: list[Cell] = []
    for domain, file in _pairs(options.heldout).items():
        cells.extend(bench.perplexities(domain, split_rows(read_corpus(file).rows, options.rows, 0)[1]))
        if options.json:
            write_json(options.json, asdict(Report(tuple(cells), ())))
    accuracies: list[Accuracy] = []
    for task, file in _pairs(options.mcq).items():
        rows = split_rows(read_corpus(file, options.split).rows, options.questions, 0)[1]
        accuracies.extend(bench.accuracies(task, rows, options.mcq_expert or bench.names))
    return Report(tuple(cells), tuple(accuracies))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.training.specialize_report", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--heldout", action="append", default=[], metavar="DOMAIN=FILE")
    parser.add_argument("--mcq", action="append", default=[], metavar="TASK=FILE", help="question, choices rows")
    parser.add_argument("--mcq-expert", action="append", metavar="NAME", help="score only these adapters on choices")
    parser.add_argument("--split", help="of the choices' file, e.g. test")
    parser.add_argument("--rows", type=int, default=100, help="rows a domain")
    parser.add_argument("--questions", type=int, default=10_000, help="questions a task, at most")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        report = run(options)
    except SpecializeError as error:
        print(f"specialize_report: {error}", file=sys.stderr)
        return 1
    if options.json:
        write_json(options.json, asdict(report))
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(report):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
