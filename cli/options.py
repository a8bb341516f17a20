"""Options that several commands share, and how they open what the options name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from ..experts.registry import Registry, RegistryError
from ..experts.state import StateFolder

Command = TypeVar("Command", bound=Callable[..., object])

DEFAULT_STATE = Path("~/.local/state/collegium")


def state_options(function: Command) -> Command:
    """Add `--state` and `--registry`."""
    function = click.option(
        "--registry",
        "registry_url",
        envvar="COLLEGIUM_REGISTRY",
        help="Registry URL, e.g. postgresql://user@host/database.  [default: SQLite in the state folder]",
    )(function)
    return click.option(
        "--state",
        envvar="COLLEGIUM_STATE",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_STATE,
        show_default=True,
        help="Folder with the registry, secrets and logs.",
    )(function)


@contextmanager
def open_registry(state: Path, registry_url: str | None) -> Iterator[Registry]:
    """The registry the options name; its errors end the command with a sentence."""
    try:
        registry = Registry(registry_url or StateFolder(state).registry_url)
        try:
            yield registry
        finally:
            registry.close()
    except (RegistryError, OSError) as error:
        raise click.ClickException(str(error)) from error
