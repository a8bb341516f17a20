"""The four specialists that ship with collegium, from permissively licensed sources, by one command.

`python -m collegium.training.specialists --data DIR --out experts/adapters`
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .specialist_choices import MAKERS
from .specialize import specialize
from .specialize_data import SpecializeError
from .specialize_model import Recipe

MODEL = "wheel:smollm2-135m-instruct"

# As their own repositories state; the full list is in the data folder's SOURCES.md.
LICENCES = {
    "arc_train": "ODC-By 1.0 (ARC: CC BY-SA 4.0)",
    "aristo_ndmc": "Apache-2.0",
    "covid_faq": "Apache-2.0",
    "gsm8k": "MIT",
    "hendrycks_math": "MIT",
    "mbpp": "MIT (MBPP: CC BY 4.0)",
    "medquad": "CC BY 4.0",
    "nl2bash": "MIT",
    "opentriviaqa": "CC BY-SA 4.0",
    "pubmedqa": "MIT",
}

_LETTERED = re.compile(r"^[A-H]\. ")
_ASKED = "Answer with the letter and the text of the right choice."


@dataclass(frozen=True, slots=True)
class Shipped:
    """One specialist: its budget, and whether lettered questions are learned as choices to score.

    `thin` keeps every n-th row of a source that would drown the others. `start` is the sibling whose adapter it goes on
    from. `made` questions with choices are made from its rows and `turns` of them are learned as chat turns, both drawn
    by hash; with `turns` 0 all are.
    """

    domain: str
    tokens_budget: int
    max_length: int
    choices: bool = False
    heldout_rows: int = 12
    evaluations: int = 1
    lr: float = 2e-3
    thin: Mapping[str, int] = field(default_factory=dict)
    start: str = ""
    made: int = 0
    turns: int = 0

    def recipe(self) -> Recipe:
        """Rank 8 on the last 15 of 30 layers: half the backward pass, and under 2 MB in bfloat16."""
        return Recipe(
            MODEL, self.domain, layers=15, max_length=self.max_length, batch_packs=1, epochs=2.0, lr=self.lr,
            evaluations=self.evaluations, tokens_budget=self.tokens_budget, heldout_rows=self.heldout_rows,
            apart=bool(self.made),
        )  # fmt: skip


SHIPPED = (
    Shipped("science", 75_000, 256, choices=True, heldout_rows=40, evaluations=3, lr=1e-3, thin={"opentriviaqa": 12}),
    Shipped("math", 24_000, 384),
    Shipped("coding", 20_000, 256, heldout_rows=24, thin={"nl2bash": 16}),
    Shipped("health", 20_000, 320),
)

# Not trained yet: they go on from the science adapter, which has learned to choose, on chat turns and made questions.
CHOOSING = (
    Shipped("math", 42_000, 384, heldout_rows=8, lr=2e-3, start="science", made=215, turns=118),
    Shipped(
        "coding", 60_000, 320, heldout_rows=24, lr=1.5e-3, thin={"nl2bash": 4}, start="science", made=300, turns=300
    ),
    Shipped("health", 60_000, 320, lr=1.5e-3, start="science", made=480, turns=120),
)


def rows_of(data: Path, shipped: Shipped, split: str = "") -> list[dict[str, object]]:
    """The domain's permissively licensed rows; `split` is "" or "_heldout".

    Raises:
        SpecializeError: the file cannot be read.
    """
    file = data / f"sft_{shipped.domain}{split}.jsonl.gz"
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise SpecializeError(f"{file} cannot be read: {error}") from error
    kept = [{**row, "licence": LICENCES[row["source"]]} for row in rows if row["source"] in LICENCES]
    if split:
        return kept
    thinned = [row for index, row in enumerate(kept) if index % shipped.thin.get(str(row["source"]), 1) == 0]
    if shipped.choices:
        return list(_with_choices(thinned))
    made = _drawn(MAKERS[shipped.domain](kept, 0), shipped.made) if shipped.made else []
    return [*_drawn(thinned, shipped.turns or len(thinned)), *made]


def _drawn(rows: Iterable[dict[str, object]], count: int) -> list[dict[str, object]]:
    return sorted(rows, key=lambda row: hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest())[:count]


def _with_choices(rows: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Lettered questions as choices to score, every sixth as the chat turn it was; other rows as they are."""
    for index, row in enumerate(rows):
        yield row if index % 6 == 0 else as_choices(row) or row


def as_choices(row: Mapping[str, object]) -> dict[str, object] | None:
    """A lettered question as question, choices and the index of the right one; None where the row is no such thing."""
    lines = str(row["instruction"]).split("\n")
    first = next((number for number, line in enumerate(lines) if line.startswith("A. ")), 0)
    lettered = [line for line in lines[first:] if _LETTERED.match(line)]
    response = str(row["response"])
    if first == 0 or lines[-1] != _ASKED or len(lettered) != len(lines) - first - 1 or response not in lettered:
        return None
    choices = [line[3:] for line in lettered]
    return {
        "question": "\n".join(lines[:first]), "choices": choices, "answer_index": lettered.index(response),
        "source": row["source"], "licence": row["licence"],
    }  # fmt: skip


def make(shipped: Shipped, data: Path, out: Path, resume: bool = False) -> Path:
    """Train one and write it to `out`/<domain>.

    Raises:
        SpecializeError: see `specialize`.
    """
    with tempfile.TemporaryDirectory() as folder:
        train, heldout = Path(folder) / "train.jsonl", Path(folder) / "heldout.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in rows_of(data, shipped)))
        heldout.write_text("".join(json.dumps(row) + "\n" for row in rows_of(data, shipped, "_heldout")))
        start = out / f"smollm2-{shipped.start}" if shipped.start else None
        folder_of = out / f"smollm2-{shipped.domain}"
        made = specialize(shipped.recipe(), train, folder_of, heldout=heldout, start=start, resume=resume)
    (made.folder / "README.md").write_text(model_card(made.folder, shipped))
    return made.folder


def model_card(folder: Path, shipped: Shipped) -> str:
    """The folder's README: data with licences, what was measured, limits."""
    metrics = json.loads((folder / "metrics.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    heldout, recipe = metrics["heldout"], provenance["recipe"]
    flag = " --choosing" if shipped.start else ""
    before = f"as it began, from smollm2-{shipped.start}" if shipped.start else "before"
    sources = "".join(
        f"| {name} | {source['rows']} | {source['licence']} |\n"
        for name, source in provenance["data"]["sources"].items()
    )
    return f"""# {folder.name}

A LoRA adapter that makes SmolLM2-135M-Instruct (Apache-2.0) a specialist of {shipped.domain}. Base: `{MODEL}`; rank
{recipe["rank"]} on {", ".join(recipe["targets"])} of the last {recipe["layers"]} layers, bfloat16, licence Apache-2.0.

## Data

| source | rows offered | licence |
|---|---|---|
{sources}
Of these, {metrics["tokens"]:,} tokens were trained on (seed {recipe["seed"]}). No row is part of this folder.

## Measured

Perplexity of {shipped.heldout_rows} held-out responses: {heldout["perplexity_before"]:.2f} {before},
{heldout["perplexity_after"]:.2f} after. Intervals and other domains: docs/specialists.md.

## Limits

135 million parameters: it writes in the manner of its domain, and its facts and sums are often wrong. It can be worse
than its base elsewhere. It is no source of medical advice, and code it writes must be read before it is run.

Made by `python -m collegium.training.specialists --data DIR --out experts/adapters --only {shipped.domain}{flag}`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.training.specialists", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with sft_<domain>.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=[shipped.domain for shipped in SHIPPED], action="append")
    parser.add_argument("--choosing", action="store_true", help="the recipes that learn to choose, beside science's")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    try:
        for shipped in CHOOSING if options.choosing else SHIPPED:
            if not options.only or shipped.domain in options.only:
                print(make(shipped, options.data, options.out, options.resume), flush=True)
    except SpecializeError as error:
        print(f"specialists: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
