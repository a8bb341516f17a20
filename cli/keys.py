"""`collegium keys`: API keys. As soon as one exists, every request needs one."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import click

from .options import open_registry, state_options


@click.group()
def command() -> None:
    """Create, list or remove API keys.

    As soon as one key exists, every request to the endpoint needs one.
    """


@command.command()
@click.argument("name")
@click.option("--experts", help="Comma-separated names of the only experts this key may use.  [default: all]")
@state_options
def create(name: str, experts: str | None, state: Path, registry_url: str | None) -> None:
    """Create the key NAME and print its secret: once, it is stored as a digest only."""
    allowed = frozenset(part.strip() for part in experts.split(",") if part.strip()) if experts else None
    with open_registry(state, registry_url) as registry:
        known = {record.name for record in registry.experts()}
        unknown = sorted((allowed or frozenset()) - known)
        if unknown:
            raise click.ClickException(f"no expert is named {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        secret = f"sk-{secrets.token_urlsafe(32)}"
        registry.add_key(name, secret, allowed)
    click.echo(secret)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_options
def list_keys(as_json: bool, state: Path, registry_url: str | None) -> None:
    """List the keys' names and what they may use."""
    with open_registry(state, registry_url) as registry:
        keys = registry.keys()
    if as_json:
        click.echo(json.dumps([{"name": k.name, "experts": sorted(k.experts) if k.experts else None} for k in keys]))
        return
    for key in keys:
        click.echo(f"{key.name}\t{', '.join(sorted(key.experts)) if key.experts else 'all experts'}")


@command.command()
@click.argument("name")
@state_options
def remove(name: str, state: Path, registry_url: str | None) -> None:
    """Remove the key NAME; edges refuse it within a second."""
    with open_registry(state, registry_url) as registry:
        if not registry.remove_key(name):
            keys = registry.keys()
            known = ", ".join(key.name for key in keys) or "none"
            raise click.ClickException(f"no key is named {name!r}; known: {known}")
    click.echo(f"removed {name}")
