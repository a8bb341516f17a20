"""`collegium serve`: a pool behind one OpenAI-compatible endpoint, until a signal ends it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click
from rich.console import Console

from ..experts.card import Card, CardError
from ..experts.networks import VARIABLE, Networks
from ..experts.pool import load_pool
from ..experts.ray_cluster import RayError
from ..experts.registry import RegistryError
from ..experts.state import StateFolder
from ..router.artefact import ArtefactError
from ..serve.lock import AlreadyServingError
from ..serve.supervisor import ServeSettings, StartError, serve
from .options import state_options

Port = click.IntRange(1, 65_535)


@click.command()
@click.argument("pool", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the public endpoint.")
@click.option("--port", type=Port, default=8000, show_default=True, help="Port of the public endpoint.")
@click.option("--admin-port", type=Port, default=8001, show_default=True, help="Port of the admin API, on loopback.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Edge processes.")
@click.option("--router", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Router artefact to use.")
@click.option("--cost-weight", type=click.FloatRange(0), default=0.0, show_default=True, help="See docs/routing.md.")
@click.option(
    "--switch-margin", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Utility by which another expert must lead before a conversation goes over to it.",
)  # fmt: skip
@click.option(
    "--vsr-headers", is_flag=True, help="Add x-vsr-* headers, by which vLLM Semantic Router's tools read a route."
)
@click.option(
    "--allow-network", "networks", multiple=True, envvar=VARIABLE, metavar="CIDR",
    help="Let remote experts be at these addresses, e.g. 127.0.0.1 or 10.0.0.0/8.  [default: public ones only]",
)  # fmt: skip
@click.option("--ray-address", help="Join this Ray cluster instead of starting one.")
@click.option("--apply-pool", is_flag=True, help="Write POOL over a registry that holds experts already.")
@state_options
def command(
    pool: str | None,
    host: str,
    port: int,
    admin_port: int,
    workers: int,
    router: Path | None,
    cost_weight: float,
    switch_margin: float,
    vsr_headers: bool,
    networks: tuple[str, ...],
    ray_address: str | None,
    apply_pool: bool,
    state: Path,
    registry_url: str | None,
) -> None:
    """Serve POOL: a built-in name (demo, specialists-7b, specialists-70b) or a YAML file.

    Without POOL, what the registry holds. Ctrl-C drains and stops everything this command started.
    """
    cards = _cards(pool)
    try:
        folder = StateFolder(state)
    except OSError as error:
        raise click.ClickException(f"the state folder {state} cannot be used: {error.strerror}") from error
    settings = ServeSettings(
        state=folder,
        registry_url=registry_url or folder.registry_url,
        pool=cards,
        apply_pool=apply_pool,
        host=host,
        port=port,
        admin_port=admin_port,
        workers=workers,
        router=router.absolute() if router else None,
        cost_weight=cost_weight,
        switch_margin=switch_margin,
        vsr_headers=vsr_headers,
        ray_address=ray_address,
        networks=_networks(networks),
    )
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {line}")

    try:
        asyncio.run(serve(settings, report))
    except (AlreadyServingError, StartError, CardError, RegistryError, RayError, ArtefactError) as error:
        raise click.ClickException(str(error)) from error


def _networks(listed: tuple[str, ...]) -> Networks:
    try:
        return Networks.parse(part for one in listed for part in one.split(","))
    except ValueError as error:
        raise click.ClickException(f"--allow-network: {error}") from error


def _cards(pool: str | None) -> list[Card]:
    if pool is None:
        return []
    try:
        return load_pool(pool)
    except CardError as error:
        raise click.ClickException(str(error)) from error
