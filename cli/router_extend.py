"""`collegium router extend` and `remove-label`: a class by examples, and away with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..experts.weights import locate
from ..router.manifest import Manifest, check_target, read_artefact
from ..training.data import Columns
from ..training.examples import OWN_COLUMNS, OWN_PROMPTS, read_examples, read_old_prompts
from ..training.extend import MAX_CHANGED, Extended, remove_label
from ..training.extend import extend as extended_by

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("base", type=FOLDER)
@click.option("--label", required=True, help="The new label.")
@click.option("--examples", required=True, help="Prompts of it: a file, a folder or hf:owner/name; 32 are plenty.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the extended router; replaced if it is one.")
@click.option("--held-out", help="Prompts of the old labels, whose routes shall stay.  [default: those of collegium]")
@click.option(
    "--max-changed",
    type=click.FloatRange(0, 1),
    default=MAX_CHANGED,
    show_default=True,
    help="Share of the held-out prompts whose route may change.",
)
@click.option("--text-column", default="text", show_default=True)
@click.option(
    "--label-column", default="label", show_default=True, help="Of the held-out prompts, where they have one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def extend(
    base: Path,
    label: str,
    examples: str,
    out: Path,
    held_out: str | None,
    max_changed: float,
    text_column: str,
    label_column: str,
    as_json: bool,
) -> None:
    """Add a label to the router in BASE by a few examples, at once and without retraining."""
    columns = Columns(text_column, label_column)
    try:
        check_target(out)
        labels = read_artefact(base)[0].labels
        shown = read_examples(examples, columns)
        if held_out is None:
            old = read_old_prompts(str(OWN_PROMPTS), OWN_COLUMNS, labels, label)
        else:
            old = read_old_prompts(held_out, columns, labels, label)
        extended = extended_by(base, label, shown, old, locate, max_changed)
        manifest = extended.save(out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"version": manifest.version, "path": str(out), **extended.report.as_dict()}))
    else:
        _print(extended, manifest, out)


@click.command("remove-label")
@click.argument("folder", type=FOLDER)
@click.option("--label", required=True, help="A label that was added by examples.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the router without it; may be FOLDER itself.")
def remove(folder: Path, label: str, out: Path) -> None:
    """Take a label away that was added to the router in FOLDER; without the last one it is the base, bit for bit."""
    try:
        check_target(out)
        manifest = remove_label(folder, label, out, locate)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {manifest.version} to {out}")


def _print(extended: Extended, manifest: Manifest, out: Path) -> None:
    report = extended.report
    click.echo(
        f"{report.label}: {report.reached:.1%} of {report.examples} examples reach it, each judged without itself"
    )
    click.echo(f"{report.changed:.2%} of {report.held_out} held-out prompts of the old labels may change their route")
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"wrote {manifest.version} to {out}")
