"""`collegium eval ensemble`: a run's experts mixed by the router's posterior, against asking one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..evals.ensemble import EnsemblePoint, ensemble_curve, read_choices
from ..evals.features import default_cache, route_cached
from ..evals.records import RecordError, RunFolder
from ..evals.statistics import Interval
from ..experts.weights import locate
from ..router.artefact import STARTER, load_router
from ..router.encoder import EncoderError
from ..router.ensemble import expert_posterior
from ..router.manifest import ArtefactError
from ..router.text import bounded


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--generalist", required=True, help="Stands for every domain without a specialist.")
@click.option("--specialist", "pairs", multiple=True, required=True, help="domain=expert; may be given again.")
@click.option("--router", type=click.Path(path_type=Path), default=STARTER, help="Router artefact.  [default: starter]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, generalist: str, pairs: tuple[str, ...], router: Path, as_json: bool) -> None:
    """Mix the choice probabilities recorded in the folder RUN (Branch-Train-Merge), for every number of experts.

    RUN is of `collegium eval run --method logprob`, which asked the experts by name.
    """
    specialist = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(specialist) < len(pairs):
        raise click.BadParameter("give domain=expert, each domain once", param_hint="--specialist")
    experts = list(dict.fromkeys([generalist, *specialist.values()]))
    try:
        folder, loaded = RunFolder(run), load_router(router, locate)
        choices = read_choices(folder.samples(), folder.records(), experts)
        texts = [bounded(sample.prompt) for sample in choices.table.samples]
        posteriors, _ = route_cached(texts, loaded, experts, default_cache(), lambda done: None)
        weights = expert_posterior(posteriors, loaded.labels, experts, specialist, generalist)
    except (RecordError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    points = ensemble_curve(choices, weights, generalist)
    if as_json:
        click.echo(json.dumps([asdict(point) for point in points]))
    else:
        Console().print(_shown(points, len(choices.table.samples)))


def _shown(points: list[EnsemblePoint], n: int) -> Table:
    table = Table("experts", "asked", "cost", "right", "over the generalist", "over the first alone", box=None)
    for point in points:
        right = f"{100 * point.accuracy.value:.1f} %"
        gains = (_gain(point.against_generalist), _gain(point.against_routed) if point.k > 1 else "")
        table.add_row(str(point.k), f"{point.calls:.2f}", f"{point.cost:.4g}", right, *gains)
    table.caption = f"{n} questions; asked and cost are means of a question, gains are points with 95 % intervals"
    return table


def _gain(gain: Interval) -> str:
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
