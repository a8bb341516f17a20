"""`collegium eval mix`: one task file of several domains' questions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from ..evals.mixture import Draw, mixture, write_task
from ..evals.tasks import TaskError


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The task file to write.")
@click.option("--from", "pairs", multiple=True, required=True, metavar="DOMAIN=FILE", help="May be given again.")
@click.option(
    "--draw",
    "draws",
    multiple=True,
    required=True,
    metavar="DOMAIN=COUNT/CHARACTERS",
    help="So many questions, whose prompts with every choice have at most so many characters together.",
)
@click.option("--part", default="0-1", show_default=True, help="0-0.3 and 0.3-1 share no question.")
@click.option("--without", multiple=True, metavar="FILE", help="A task file none of whose questions may be drawn.")
@click.option("--seed", default=0, show_default=True)
def command(
    out: Path, pairs: tuple[str, ...], draws: tuple[str, ...], part: str, without: tuple[str, ...], seed: int
) -> None:
    """Draw multiple-choice questions of several domains into one file.

    Of files whose rows name a split only "test" is taken, of files whose rows name domains only DOMAIN's.
    """
    try:
        low, _, high = part.partition("-")
        wanted = {domain: draw.split("/") for domain, _, draw in (one.partition("=") for one in draws)}
        bounds = (float(low), float(high))
        taken = {domain: Draw(int(count), int(size), bounds, seed) for domain, (count, size) in wanted.items()}
    except ValueError as error:
        raise click.ClickException("give --draw DOMAIN=COUNT/CHARACTERS and --part as 0-0.3") from error
    sources: dict[str, list[Path | str]] = {}
    for domain, _, file in (pair.partition("=") for pair in pairs):
        sources.setdefault(domain, []).append(file)
    if set(sources) != set(taken):
        raise click.ClickException(f"--from names {sorted(sources)}, --draw {sorted(taken)}; give both the same")
    try:
        samples = mixture(sources, taken, without)
    except TaskError as error:
        raise click.ClickException(str(error)) from error
    write_task(samples, out)
    counts = Counter(sample.domain for sample in samples)
    click.echo(
        f"{out}: {len(samples)} questions ({', '.join(f'{count} {domain}' for domain, count in counts.items())})"
    )
