"""`collegium specialize`: a seed model and rows of a domain become a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

import click

from ..training.self_instruct import SelfInstruct, write_more
from ..training.specialize import Specialist, specialize
from ..training.specialize_data import SpecializeError, read_corpus
from ..training.specialize_model import Recipe

_DEFAULTS = Recipe("", "")
_SHOWN_BAD_ROWS = 10
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("seed_model")
@click.argument("data", type=_FILE)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the adapter.")
@click.option("--domain", required=True, help="What it is a specialist of, e.g. math.")
@click.option("--heldout", type=_FILE, help="Rows to measure on.  [default: some rows of DATA]")
@click.option("--heldout-rows", type=int, default=_DEFAULTS.heldout_rows, show_default=True)
@click.option("--engine", default="general", show_default=True, help="Card of the engine that will serve it.")
@click.option("--revision", help="Of a seed model on the hub.")
@click.option("--rank", type=int, default=_DEFAULTS.rank, show_default=True)
@click.option("--targets", default=",".join(_DEFAULTS.targets), show_default=True, help="Modules that get an adapter.")
@click.option("--layers", type=int, default=0, show_default=True, help="Only the last so many layers; 0 is all.")
@click.option("--max-length", type=int, default=_DEFAULTS.max_length, show_default=True, help="Tokens of a row.")
@click.option("--pack-tokens", type=int, help="Tokens of a forward pass.  [default: max-length]")
@click.option("--batch-packs", type=int, default=_DEFAULTS.batch_packs, show_default=True, help="Passes a step.")
@click.option("--tokens-budget", type=int, default=_DEFAULTS.tokens_budget, show_default=True, help="At most so many.")
@click.option("--epochs", type=float, default=_DEFAULTS.epochs, show_default=True, help="At most so many.")
@click.option("--lr", type=float, default=_DEFAULTS.lr, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--merge", is_flag=True, help="Write the full model too, in OUT/merged.")
@click.option("--resume", is_flag=True, help="Go on with a run that was cut off.")
@click.option("--self-instruct", type=click.IntRange(1), metavar="N", help="Have the seed model write N rows first.")
def command(
    seed_model: str, data: Path, out: Path, domain: str, heldout: Path | None, heldout_rows: int, engine: str,
    revision: str | None, rank: int, targets: str, layers: int, max_length: int, pack_tokens: int | None,
    batch_packs: int, tokens_budget: int, epochs: float, lr: float, seed: int, merge: bool, resume: bool,
    self_instruct: int | None,
) -> None:  # fmt: skip
    """Train a specialist of SEED_MODEL on DATA.

    DATA is .jsonl (or .jsonl.gz) with `instruction` and `response`, with `question`, `choices` and `answer_index`, or
    with `text` in each row; or a .txt file. SEED_MODEL is a hub id, a folder or wheel:<name>.
    """
    try:
        recipe = Recipe(
            seed_model, domain, revision, rank, tuple(filter(None, targets.split(","))), layers, max_length,
            pack_tokens or max_length, batch_packs, tokens_budget, epochs, lr, heldout_rows, seed=seed,
        )  # fmt: skip
        if self_instruct:
            data = _more_rows(seed_model, revision, data, out, SelfInstruct(self_instruct, seed=seed))
        made = specialize(
            recipe, data, out, heldout=heldout, engine=engine, resume=resume, merge=merge, quiet=False
        )  # fmt: skip
    except SpecializeError as error:
        raise click.ClickException(str(error)) from error
    _tell(made)


def _more_rows(model: str, revision: str | None, data: Path, out: Path, plan: SelfInstruct) -> Path:
    """DATA and what the seed model wrote, in `<out>.rows.jsonl`; what is there already is used again."""
    file = out.with_name(out.name + ".rows.jsonl")
    if not file.exists():
        counts = write_more(model, read_corpus(data).rows, plan, file, revision)
        click.echo(f"self-instruct: {counts} -> {file}", err=True)
    return file


def _tell(made: Specialist) -> None:
    for bad in made.bad_rows[:_SHOWN_BAD_ROWS]:
        click.echo(f"left out {bad}", err=True)
    if len(made.bad_rows) > _SHOWN_BAD_ROWS:
        click.echo(f"... {len(made.bad_rows)} rows left out in all", err=True)
    click.echo(
        f"{made.folder}: held-out loss {made.loss_before:.3f} -> {made.loss_after:.3f}, {made.tokens} tokens at "
        f"{made.tokens_per_second:.0f}/s"
    )
    click.echo("It gets no traffic until an evaluation admits it: collegium experts admit")
