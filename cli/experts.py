"""`collegium experts`: the pool's members. Writes the registry; a running reconciler makes it so."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click
import yaml
from rich.console import Console
from rich.table import Table

from ..experts.adapter import resolved
from ..experts.backends import RemoteBackend
from ..experts.card import Card, CardError, parse_card
from ..experts.preflight import check_card
from ..experts.registry import ExpertRecord, Registry, State
from .options import open_registry, state_options


@click.group()
def command() -> None:
    """List, show, add, replace or remove experts.

    A running endpoint follows within a second.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_options
def list_experts(as_json: bool, state: Path, registry_url: str | None) -> None:
    """List the experts and their states."""
    with open_registry(state, registry_url) as registry:
        records, skills = registry.experts(), registry.skills()
    if as_json:
        click.echo(json.dumps([_as_json(record) for record in records], indent=2))
        return
    table = Table("expert", "backend", "state", "domains", "reason", box=None)
    for record in records:
        measured = (skill.domain for skill in skills if skill.expert == record.name and skill.admitted)
        admitted = ", ".join(sorted({*record.card.admitted, *measured})) or "none admitted"
        domains = "everything" if record.card.generalist else admitted
        table.add_row(record.name, _kind(record), record.state.value, domains, record.reason)
    Console().print(table)


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@state_options
def show(name: str, as_json: bool, state: Path, registry_url: str | None) -> None:
    """Show one expert: card, state, measured skills."""
    with open_registry(state, registry_url) as registry:
        shown = _as_json(registry.expert(name))
        shown["measured"] = {
            skill.domain: {"right": skill.right, "total": skill.total, "admitted": skill.admitted}
            for skill in registry.skills()
            if skill.expert == name
        }
    click.echo(json.dumps(shown, indent=2) if as_json else yaml.safe_dump(shown, sort_keys=False).rstrip())


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Replace an expert of the same name.")
@click.option("--no-check", is_flag=True, help="Do not ask the URL, look for the model, or plan memory first.")
@click.option("--wait", type=click.FloatRange(min=0), help="Wait up to so many seconds until it is ready.")
@state_options
def add(file: Path, replace: bool, no_check: bool, wait: float | None, state: Path, registry_url: str | None) -> None:
    """Register the expert whose card is in FILE (YAML)."""
    with open_registry(state, registry_url) as registry:
        card = _read_card(file)
        record = _register(registry, card, replace, no_check)
        click.echo(f"{record.name}: {record.state.value}, generation {record.generation}")
        if wait is not None:
            _wait_until_ready(registry, record.name, wait)


@command.command()
@click.argument("name")
@click.option("--wait", type=click.FloatRange(min=0), help="Wait up to so many seconds until it is gone.")
@state_options
def remove(name: str, wait: float | None, state: Path, registry_url: str | None) -> None:
    """Drain the expert NAME and remove it."""
    with open_registry(state, registry_url) as registry:
        registry.remove(name)
        click.echo(f"{name}: draining")
        deadline = time.monotonic() + (wait or 0)
        while wait is not None and any(record.name == name for record in registry.experts()):
            if time.monotonic() > deadline:
                raise click.ClickException(f"{name} is still draining after {wait:g} s; is `collegium serve` running?")
            time.sleep(0.1)


@command.command()
@click.argument("name")
@click.option(
    "--run",
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    multiple=True,
    help="Folder of a `collegium eval run`; several may hold the answers of NAME and of the generalist.",
)
@click.option("--per-character", is_flag=True, help="Where texts were scored: by the log-probability a character.")
@click.option("--generalist", help="Its name.  [default: the registry's only generalist]")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True)
@click.option(
    "--margin", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Loss allowed in a subject."
)
@click.option("--min-samples", type=click.IntRange(1), default=30, show_default=True, help="Questions a domain needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_options
def admit(
    name: str,
    folders: tuple[Path, ...],
    per_character: bool,
    generalist: str | None,
    confidence: float,
    margin: float,
    min_samples: int,
    as_json: bool,
    state: Path,
    registry_url: str | None,
) -> None:
    """Admit NAME to exactly the domains where a run shows that it beats the generalist.

    Writes the measured skills of both; says for every other domain which clause failed.
    """
    from ..evals.gate import Gate, GateError
    from ..evals.gate import admit as judge
    from ..evals.records import RecordError, RunFolder
    from ..evals.runner import judged_per_character

    gate = Gate(confidence=confidence, margin=margin, min_samples=min_samples)
    with open_registry(state, registry_url) as registry:
        try:
            runs = [RunFolder(folder) for folder in folders]
            samples = {sample.id: sample for run in runs for sample in run.samples()}
            records = [record for run in runs for record in run.records()]
            if per_character:
                records = judged_per_character(list(samples.values()), records)
            rival = generalist or _only_generalist(registry)
            verdicts = judge(registry, name, rival, list(samples.values()), records, gate)
        except (GateError, RecordError) as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([{**asdict(verdict), "admitted": verdict.admitted} for verdict in verdicts]))
        return
    table = Table("domain", "questions", name, rival, "admitted", "because", box=None)
    for verdict in verdicts:
        rates = (f"{100 * right / verdict.n:.1f}" for right in (verdict.right, verdict.generalist_right))
        why = verdict.failed or f"{100 * verdict.gain.value:+.1f} points, p = {verdict.p:.2g}"
        table.add_row(verdict.domain, str(verdict.n), *rates, "yes" if verdict.admitted else "no", why)
    Console().print(table)


def _kind(record: ExpertRecord) -> str:
    """The backend's kind, with how many of a remote expert's URLs answer."""
    backend = record.card.backend
    if not isinstance(backend, RemoteBackend) or len(backend.addresses) == 1:
        return backend.kind
    return f"{backend.kind}, {len(record.base_urls)} of {len(backend.addresses)} URLs"


def _only_generalist(registry: Registry) -> str:
    names = [record.name for record in registry.experts() if record.card.generalist and not record.removed]
    if len(names) != 1:
        raise click.ClickException(f"the registry holds {len(names)} generalists; name one with --generalist")
    return names[0]


def _read_card(file: Path) -> Card:
    try:
        return resolved(parse_card(yaml.safe_load(file.read_text(encoding="utf-8"))), file.parent)
    except CardError as error:
        raise click.ClickException(f"{file}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} is not YAML: {error}") from error


def _register(registry: Registry, card: Card, replace: bool, no_check: bool) -> ExpertRecord:
    existing = registry.experts()
    if not no_check:
        try:
            check_card(card, existing)
        except CardError as error:
            raise click.ClickException(str(error)) from error
    if replace and any(record.name == card.name for record in existing):
        return registry.replace(card)
    return registry.add(card)


def _wait_until_ready(registry: Registry, name: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (record := registry.expert(name)).state is not State.READY:
        if record.state is State.FAILED:
            raise click.ClickException(f"{name} failed: {record.reason}")
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"{name} is {record.state.value} after {seconds:g} s; is `collegium serve` running?"
            )
        time.sleep(0.1)
    click.echo(f"{name}: ready")


def _as_json(record: ExpertRecord) -> dict[str, object]:
    card: Mapping[str, object] = record.card.model_dump(mode="json", exclude_defaults=True)
    return {
        "name": record.name,
        "state": record.state.value,
        "reason": record.reason,
        "generation": record.generation,
        "card": dict(card),
    }
