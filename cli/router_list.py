"""Router versions as rows: those in the registry and those in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..experts.registry import RouterRecord
from ..router.artefact import STARTER
from ..router.manifest import ArtefactError, Manifest, read_artefact
from ..router.store import artefacts, held_out_accuracy


@dataclass(frozen=True, slots=True)
class Row:
    """`accuracy` is that on held-out rows, `promoted` the time as text, `problem` why the artefact cannot be used."""

    version: str
    kind: str
    parent: str | None
    accuracy: float | None
    promoted: str | None
    active: bool
    path: str
    problem: str | None = None


def promoted_rows(records: Sequence[RouterRecord]) -> list[Row]:
    """What the registry knows; the starter comes last and is active where nothing else is."""
    rows = [
        Row(
            record.version, record.kind, record.parent, record.accuracy, _time(record.promoted), record.active,
            record.path, _problem(record),
        )
        for record in records
    ]  # fmt: skip
    return [*rows, _row(STARTER, read_artefact(STARTER)[0], not any(row.active for row in rows))]


def folder_rows(folder: Path, active: str | None) -> list[Row]:
    """The artefacts in a folder, the broken ones with the reason."""
    return [
        Row(path.name, "", None, None, None, False, str(path), str(found))
        if isinstance(found, ArtefactError)
        else _row(path, found, found.version == active)
        for path, found in artefacts(folder)
    ]


def print_rows(rows: Sequence[Row]) -> None:
    table = Table("version", "kind", "held out", "parent", "promoted", "folder")
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
        promoted = "active" if row.active else ""
        when = " ".join(filter(None, (row.promoted, promoted)))
        table.add_row(row.version, row.kind, accuracy, row.parent or "", when, escape(row.path))
    console = Console()
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"{row.version}: {row.problem}", markup=False, soft_wrap=True)


def _row(path: Path, manifest: Manifest, active: bool) -> Row:
    return Row(
        manifest.version, manifest.kind, manifest.parent, held_out_accuracy(manifest), None, active, str(path)
    )  # fmt: skip


def _problem(record: RouterRecord) -> str | None:
    try:
        found = read_artefact(Path(record.path))[0].version
    except ArtefactError as error:
        return str(error)
    return None if found == record.version else f"its folder holds {found} now"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
