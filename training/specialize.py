"""Seed model + rows of a domain -> LoRA adapter folder. transformers' Trainer and peft do the work."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from transformers import set_seed

from .specialize_data import BadRow, Corpus, Row, SpecializeError, read_corpus, split_rows
from .specialize_model import Recipe, adapt, load_base, weights_checksum
from .specialize_progress import DivergedError
from .specialize_save import save_result, version_of
from .specialize_tokens import Format, encode, pack
from .specialize_trainer import TrainingData, trainer_of

_WORK = ".unfinished"
_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Specialist:
    """What came out. Losses are nats a response token, held out, before and after."""

    folder: Path
    loss_before: float
    loss_after: float
    tokens: int
    tokens_per_second: float
    bad_rows: tuple[BadRow, ...] = field(repr=False)


def specialize(
    recipe: Recipe, data: Path, out: Path, *, heldout: Path | None = None, start: Path | None = None,
    engine: str = "general", resume: bool = False, merge: bool = False, quiet: bool = False,
) -> Specialist:  # fmt: skip
    """Train an adapter of `recipe.model` on the rows of `data` and write it to the new folder `out`.

    While it runs, checkpoints lie in `<out>.unfinished`; `resume` goes on from the last whole one. `heldout` is a file
    of rows to measure on; without it some rows of `data` are held out. `start` is an adapter of the same settings
    to go on from, such as a sibling that has learned to choose. `merge` adds the full model, in `merged/`.

    Raises:
        SpecializeError: unusable data, model or settings, or a run that diverged; nothing is left in `out`.
    """
    folder = _free_folder(out)
    corpus = read_corpus(data)
    began = {"adapter": start.name, "sha256": weights_checksum(start)} if start else None
    plan = json.dumps({"recipe": asdict(recipe), "data": corpus.sha256, "start": began}, sort_keys=True)
    work = _work_folder(out, plan, resume)
    tokenizer, model, base = load_base(recipe.model, recipe.revision)
    prepared = prepare(recipe, corpus, heldout, Format(tokenizer))
    set_seed(recipe.seed)
    adapted = adapt(model, recipe, start)
    trainer = trainer_of(adapted, recipe, prepared, work, quiet)
    started = time.monotonic()
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / _PLAN).write_text(plan)
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        metrics = trainer.closing_metrics(time.monotonic() - started)
        metrics["data"] = {
            "rows": len(corpus.rows), "bad_rows": len(corpus.bad), "duplicates": corpus.duplicates,
            "cut": prepared.encoded.cut, "dropped": prepared.encoded.dropped, "tokens": prepared.tokens,
        }  # fmt: skip
        provenance = _provenance(recipe, corpus, base) | ({"start": began} if began else {})
        save_result(adapted, tokenizer, work, folder, recipe.domain, engine, metrics, provenance, merge)
    except DivergedError:
        shutil.rmtree(work)
        raise
    except (OSError, SafetensorError) as error:
        raise SpecializeError(f"{error}; the checkpoints in {work} are kept, go on with --resume") from error
    shutil.rmtree(work)
    return Specialist(
        folder, trainer.first_loss, trainer.last_loss, trainer.state.num_input_tokens_seen, trainer.speed, corpus.bad
    )


def prepare(recipe: Recipe, corpus: Corpus, heldout: Path | None, form: Format) -> TrainingData:
    """The corpus, and what is held out of it or in `heldout`, as packs of tokens.

    Raises:
        SpecializeError: too few rows fit.
    """
    rows: Sequence[Row]
    rows, held = (
        (corpus.rows, read_corpus(heldout).rows[: recipe.heldout_rows])
        if heldout
        else split_rows(corpus.rows, min(recipe.heldout_rows, len(corpus.rows) // 5), recipe.seed)
    )
    train, measured = encode(rows, form, recipe.max_length), encode(held, form, recipe.max_length)
    if not train.samples or not measured.samples:
        raise SpecializeError(
            f"{len(train.samples)} rows to train on and {len(measured.samples)} held out fit into "
            f"{recipe.max_length} tokens; both need at least one (5 rows or more, or a longer --max-length)"
        )
    questions = [sample for sample in train.samples if recipe.apart and len(sample.branches) > 1]
    others = [sample for sample in train.samples if not (recipe.apart and len(sample.branches) > 1)]
    packs = [packed for kind in (questions, others) for packed in pack(kind, recipe.pack_tokens, recipe.seed)]
    return TrainingData(corpus, packs, pack(measured.samples, recipe.pack_tokens), train)


def _free_folder(out: Path) -> Path:
    if out.exists():
        raise SpecializeError(f"{out} exists already; choose another folder, or remove it")
    return out


def _work_folder(out: Path, plan: str, resume: bool) -> Path:
    """`<out>.unfinished`: not there yet, or of the same recipe and data."""
    work = out.with_name(out.name + _WORK)
    if work.exists() and not resume:
        raise SpecializeError(f"an unfinished run is in {work}; go on with --resume, or remove the folder")
    if (work / _PLAN).is_file() and (work / _PLAN).read_text() != plan:
        raise SpecializeError(f"the run in {work} has other settings or data; repeat them, or remove the folder")
    return work


def _last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint. The trainer's state is written last: a folder without it was cut off, and goes."""
    found = sorted((work / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for torn in [path for path in found if not (path / "trainer_state.json").is_file()]:
        shutil.rmtree(torn)
        found.remove(torn)
    return str(found[-1]) if found else None


def _provenance(recipe: Recipe, corpus: Corpus, base: Path) -> dict[str, object]:
    return {
        "recipe": asdict(recipe),
        "data": {"sha256": corpus.sha256, "sources": corpus.sources()},
        "base": {"model": recipe.model, "revision": recipe.revision, "sha256": weights_checksum(base)},
        "versions": {name: version_of(name) for name in ("collegium", "torch", "transformers", "peft")},
    }
