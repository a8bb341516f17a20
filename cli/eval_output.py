"""What the evaluation commands have in common: a judgement's page and tables, and a bar of progress."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from ..evals.features import Advance
from ..evals.replay import Judgement
from ..evals.text import markdown


def write_page(judgement: Judgement, folder: Path | None) -> None:
    if folder is None:
        return

    from ..evals.report import write_report  # matplotlib comes with it

    page = write_report(judgement, folder, shlex.join(["collegium", *sys.argv[1:]]))
    click.echo(f"report: {page}", err=True)


def show(judgement: Judgement, as_json: bool) -> None:
    click.echo(
        json.dumps(judgement.as_dict(), indent=2, allow_nan=False) if as_json else markdown(judgement), nl=as_json
    )


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """A bar with the time left, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
