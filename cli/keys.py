"""`collegium keys`: API keys. As soon as one exists, every request needs one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..experts.registry import KeyRecord, KeyScope, Registry
from .options import open_registry, state_options

Limit = click.IntRange(min=1)


@click.group()
def command() -> None:
    """Add, list, rotate or revoke API keys.

    As soon as one key exists, every request to the endpoint needs one. Running endpoints follow within a second.
    """


@command.command()
@click.argument("name")
@click.option("--experts", help="Comma-separated names of experts this key may use.  [default: all]")
@click.option("--domains", help="Comma-separated domains: the key may use the experts admitted to one of them.")
@click.option("--admin", is_flag=True, help="The key opens the admin API and nothing else.")
@click.option("--requests-per-minute", type=Limit, help="Further requests get a 429.  [default: no limit]")
@click.option("--tokens-per-minute", type=Limit, help="Prompt and completion together.  [default: no limit]")
@click.option("--concurrent", type=Limit, help="Requests and streams at a time.  [default: no limit]")
@state_options
def add(
    name: str,
    experts: str | None,
    domains: str | None,
    admin: bool,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    state: Path,
    registry_url: str | None,
) -> None:
    """Add the key NAME and print its secret: once, it is stored as a digest only."""
    scope = KeyScope(_names(experts), _names(domains), admin, requests_per_minute, tokens_per_minute, concurrent)
    if admin and scope != KeyScope(admin=True):
        raise click.ClickException("an admin key opens the admin API only; give it no experts, domains or limits")
    with open_registry(state, registry_url) as registry:
        known = {record.name for record in registry.experts()}
        unknown = sorted((scope.experts or frozenset()) - known)
        if unknown:
            raise click.ClickException(f"no expert is named {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        secret = _secret()
        registry.add_key(name, secret, scope)
    click.echo(secret)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_options
def list_keys(as_json: bool, state: Path, registry_url: str | None) -> None:
    """List the keys' names, what they may use, and their limits."""
    with open_registry(state, registry_url) as registry:
        keys = registry.keys()
    if as_json:
        click.echo(json.dumps([_as_json(key) for key in keys]))
        return
    table = Table("key", "may use", "requests/min", "tokens/min", "concurrent", box=None)
    for key in keys:
        scope = key.scope
        limits = (scope.requests_per_minute, scope.tokens_per_minute, scope.concurrent)
        table.add_row(key.name, _reach(key), *("-" if limit is None else str(limit) for limit in limits))
    Console().print(table)


@command.command()
@click.argument("name")
@click.option(
    "--overlap", type=click.FloatRange(min=0), default=0.0, show_default=True,
    help="Seconds for which the old secret still works.",
)  # fmt: skip
@state_options
def rotate(name: str, overlap: float, state: Path, registry_url: str | None) -> None:
    """Give the key NAME a new secret and print it; scope and limits stay."""
    with open_registry(state, registry_url) as registry:
        secret = _secret()
        if not registry.rotate_key(name, secret, overlap):
            raise _unknown(name, registry)
    click.echo(secret)


@command.command()
@click.argument("name")
@click.option("--forget", is_flag=True, help="Delete the record too; without any record the endpoint is open to all.")
@state_options
def revoke(name: str, forget: bool, state: Path, registry_url: str | None) -> None:
    """End the key NAME. Its record stays, so that the endpoint does not open when the last key goes."""
    with open_registry(state, registry_url) as registry:
        if not (registry.remove_key(name) if forget else registry.revoke_key(name)):
            raise _unknown(name, registry)
        is_open = not registry.keys()
    click.echo(f"revoked {name}")
    if is_open:
        click.echo("no key is left: everybody who reaches the endpoint may ask", err=True)


def _secret() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def _names(listed: str | None) -> frozenset[str] | None:
    return frozenset(part.strip() for part in listed.split(",") if part.strip()) if listed else None


def _unknown(name: str, registry: Registry) -> click.ClickException:
    known = ", ".join(key.name for key in registry.keys() if not key.revoked) or "none"
    return click.ClickException(f"no key in use is named {name!r}; known: {known}")


def _reach(key: KeyRecord) -> str:
    if key.revoked:
        return "nothing: revoked"
    if key.scope.admin:
        return "the admin API"
    parts = []
    if key.scope.experts is not None:
        parts.append(_listed(key.scope.experts))
    if key.scope.domains is not None:
        parts.append(f"experts of {_listed(key.scope.domains)}")
    return "; ".join(parts) or "all experts"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _as_json(key: KeyRecord) -> dict[str, object]:
    scope = key.scope
    return {
        "name": key.name,
        "revoked": key.revoked,
        "experts": None if scope.experts is None else sorted(scope.experts),
        "domains": None if scope.domains is None else sorted(scope.domains),
        "admin": scope.admin,
        "requests_per_minute": scope.requests_per_minute,
        "tokens_per_minute": scope.tokens_per_minute,
        "concurrent": scope.concurrent,
        "previous_until": key.previous_until if key.previous else None,
    }
