"""`collegium stop`: end what serves from a state folder, and engines that a killed one left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from ..experts.ray_cluster import RayCluster
from ..experts.state import StateFolder
from ..serve.lock import serving
from .options import DEFAULT_STATE


@click.command()
@click.option(
    "--state",
    envvar="COLLEGIUM_STATE",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=DEFAULT_STATE.expanduser(),
    show_default=True,
)
@click.option("--patience", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds to wait.")
def command(state: Path, patience: float) -> None:
    """Stop what serves from the state folder, engines included.

    Also ends engines that a killed `collegium serve` left running.
    """
    holder = serving(state)
    if holder is None:
        ended = RayCluster(StateFolder(state)).stop()
        click.echo(f"nothing serves from {state}" + ("; ended what was left of it" if ended else ""))
        return
    pid = holder.get("pid")
    if not isinstance(pid, int):
        raise click.ClickException(f"{state} is being opened right now; try again")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while serving(state) is not None:
        if time.monotonic() > deadline:
            raise click.ClickException(f"process {pid} still runs after {patience:g} s; see {state / 'logs'}")
        time.sleep(0.2)
    click.echo("stopped")
