"""`collegium router`: versions of the trained router: list, show, compare, promote, roll back, extend."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..experts.registry import RouterRecord
from ..experts.state import StateFolder
from ..experts.weights import locate
from ..router.artefact import STARTER, ArtefactError, Router, load_router
from ..router.manifest import read_artefact
from ..router.store import held_out_accuracy, keep
from ..training.compare import Comparison, compare, refuse_seen, unseen
from ..training.data import Columns, read_prompts
from .options import open_registry, state_options
from .router_extend import extend, remove
from .router_list import folder_rows, print_rows, promoted_rows
from .router_report import calibrate, report

MAX_NEGATIVE_FLIPS = 0.02
FOLDER = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """List, show, compare, promote, roll back or extend versions of the router."""


command.add_command(extend)
command.add_command(remove)
command.add_command(report)
command.add_command(calibrate)


@command.command("list")
@click.option("--folder", type=FOLDER, help="List the routers in this folder, instead of those that were promoted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_options
def list_command(folder: Path | None, as_json: bool, state: Path, registry_url: str | None) -> None:
    """Versions that were promoted, the latest first, and which one is active; or those in a folder."""
    with open_registry(state, registry_url) as registry:
        records = registry.routers()
    active = next((record.version for record in records if record.active), None)
    rows = folder_rows(folder, active) if folder else promoted_rows(records)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    else:
        print_rows(rows)


@command.command()
@click.argument("folder", type=FOLDER, default=STARTER)
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest.")
def show(folder: Path, as_json: bool) -> None:
    """Check the artefact in FOLDER and say what it is.  [default: the starter]"""
    try:
        manifest, _ = read_artefact(folder)
    except ArtefactError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(manifest.canonical().decode(), nl=False)
        return
    click.echo(f"{manifest.version}: kind {manifest.kind}, by {manifest.created_by}, seed {manifest.seed}")
    if manifest.encoder:
        click.echo(f"encoder {manifest.encoder.model}, weights {manifest.encoder.checksum[:12]}")
    click.echo(f"threshold {manifest.threshold:.3f}, temperature {manifest.temperature:.3f}")
    for label in manifest.labels:
        click.echo(f"  {label}: {manifest.data.rows.get(label, 0)} training rows")


@command.command("compare")
@click.argument("old", type=FOLDER)
@click.argument("new", type=FOLDER)
@click.option("--data", required=True, help="Labelled prompts that neither was trained on.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--drop-seen", is_flag=True, help="Leave out what one of them was trained on, instead of refusing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(
    old: Path, new: Path, data: str, text_column: str, label_column: str, drop_seen: bool, as_json: bool
) -> None:
    """Accuracy of OLD and NEW on the same prompts, and which prompts flip."""
    found = _compared(_open(old), _open(new), [old, new], data, Columns(text_column, label_column), drop_seen)
    if as_json:
        click.echo(json.dumps({**asdict(found), "negative_flip_rate": found.negative_flip_rate}))
    else:
        _print(found)


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", help="Labelled prompts to compare with the active version on.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--drop-seen", is_flag=True, help="Leave out what one of them was trained on, instead of refusing.")
@click.option(
    "--max-negative-flips",
    type=click.FloatRange(0, 1),
    default=MAX_NEGATIVE_FLIPS,
    show_default=True,
    help="Largest share of prompts that may turn wrong.",
)
@click.option("--force", is_flag=True, help="Promote whatever the comparison says, or without one.")
@click.option("--in-place", is_flag=True, help="Serve FOLDER itself; without it a copy in the state folder is served.")
@state_options
def promote(
    folder: Path,
    data: str | None,
    text_column: str,
    label_column: str,
    drop_seen: bool,
    max_negative_flips: float,
    force: bool,
    in_place: bool,
    state: Path,
    registry_url: str | None,
) -> None:
    """Make the router in FOLDER the one that edges use, within a second."""
    router = _open(folder)
    if data is None and not force:
        raise click.UsageError("give --data to compare with the active version, or --force")
    with open_registry(state, registry_url) as registry:
        if data is not None:
            active = Path(registry.active_router() or STARTER)
            found = _compared(
                _open(active), router, [active, folder], data, Columns(text_column, label_column), drop_seen
            )
            _print(found)
            if found.negative_flip_rate > max_negative_flips and not force:
                raise click.ClickException(
                    f"{found.negative_flip_rate:.1%} of the prompts turn wrong, over {max_negative_flips:.1%}; "
                    "nothing was promoted (--force overrides)"
                )
        kept = folder.absolute() if in_place else _kept(folder, StateFolder(state).routers)
        manifest = router.manifest
        accuracy = held_out_accuracy(manifest)
        registry.promote(RouterRecord(router.version, str(kept), manifest.kind, manifest.parent, accuracy))
    click.echo(f"{router.version} is active")


@command.command()
@state_options
def rollback(state: Path, registry_url: str | None) -> None:
    """Go back to the version that was active before."""
    with open_registry(state, registry_url) as registry:
        if registry.active_router() is None:
            raise click.ClickException("nothing was promoted; the starter is active")
        before = registry.rollback()
    click.echo(f"{before or 'the starter'} is active again")


def _open(folder: Path) -> Router:
    try:
        return load_router(folder, locate)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _kept(folder: Path, store: Path) -> Path:
    try:
        return keep(folder, store)
    except ArtefactError as error:
        raise click.ClickException(str(error)) from error


def _compared(
    old: Router, new: Router, folders: list[Path], data: str, columns: Columns, drop_seen: bool
) -> Comparison:
    try:
        prompts = read_prompts(data, columns, {*old.labels, *new.labels})
        if drop_seen:
            prompts = unseen(folders, prompts)
        refuse_seen(folders, prompts)
        return compare(old, new, prompts)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _print(found: Comparison) -> None:
    table = Table("version", "right", f"of {found.rows}")
    for version, right in ((found.old, found.old_right), (found.new, found.new_right)):
        table.add_row(version, str(right), f"{right / found.rows:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"{found.negative_flips} turn wrong ({found.negative_flip_rate:.1%}), {found.positive_flips} turn right; "
        f"p = {found.p_value:.3g} (McNemar)"
    )
