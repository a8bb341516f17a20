"""Questions that a router was trained on: refused in evaluations, or left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import httpx2

from ..evals.records import Sample
from ..evals.tasks import Style, choice_prompt
from ..experts.state import ROUTERS
from ..router.artefact import STARTER, ArtefactError
from ..router.manifest import read_artefact
from ..router.seen import seen_rows
from .options import DEFAULT_STATE

TIMEOUT = 10.0
SHOWN = 5


def unseen_samples(samples: Sequence[Sample], router: Path, drop: bool) -> list[Sample]:
    """The samples that the router was not trained on, neither by their question nor as they are put.

    Raises:
        ValueError: there are some that it was trained on, and they are not to be dropped; or none is left.
    """
    version = read_artefact(router)[0].version
    put = [choice_prompt(sample, (), Style()) if sample.choices else sample.prompt for sample in samples]
    texts = [sample.prompt for sample in samples]
    seen = {int(row) % len(samples) for row in seen_rows(router, [*texts, *put])} if samples else set()
    if seen and not drop:
        first = ", ".join(samples[row].id for row in sorted(seen)[:SHOWN])
        raise ValueError(
            f"{len(seen)} of {len(samples)} questions are training prompts of {version}, or near duplicates "
            f"(first: {first}); leave them out, or let --drop-seen do it"
        )
    if len(seen) == len(samples):
        raise ValueError(f"{version} was trained on all {len(samples)} questions")
    if seen:
        click.echo(f"{len(seen)} of {len(samples)} questions are left out: {version} was trained on them", err=True)
    return [sample for row, sample in enumerate(samples) if row not in seen]


def router_behind(endpoint: str, key: str | None) -> Path | None:
    """The artefact that an endpoint routes with, where it is on this machine: the starter, or one that was promoted.

    None, said on stderr, where it is elsewhere; None where the endpoint does not route.
    """
    version = _version(endpoint, key)
    if version is None:
        return None
    state = Path(os.environ.get("COLLEGIUM_STATE") or DEFAULT_STATE).expanduser()
    for folder in (STARTER, state / ROUTERS / version):
        try:
            if read_artefact(folder)[0].version == version:
                return folder
        except ArtefactError:
            continue
    click.echo(f"router {version} is not here, so what it was trained on is not checked; name it by --router", err=True)
    return None


def _version(endpoint: str, key: str | None) -> str | None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx2.Client(timeout=TIMEOUT, trust_env=False, headers=headers) as client:
            body = client.post(f"{endpoint.rstrip('/')}/route", json={"text": "hello"}).raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        return None
    version = body.get("router") if isinstance(body, dict) else None
    return version if isinstance(version, str) else None
