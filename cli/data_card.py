"""The data card on a terminal: rows, lengths, duplicates and conflicts of labelled prompts."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..training.data_card import DataCard

SHOWN_SOURCES = 8
SHOWN_CHARACTERS = 80


def print_card(card: DataCard, console: Console) -> None:
    """Print it, the largest sources only; what may be wrong comes last."""
    sources = sorted(card.sources, key=lambda source: (-sum(card.sources[source].values()), source))
    shown = sources[:SHOWN_SOURCES] if sources != [""] else []
    table = Table("label", "rows", *(escape(source) or "no source" for source in shown), title=f"{card.rows} prompts")
    for label, rows in card.labels.items():
        table.add_row(escape(label), str(rows), *(str(card.sources[source].get(label, "")) for source in shown))
    console.print(table)
    if len(sources) > len(shown) > 0:
        console.print(f"and {len(sources) - len(shown)} smaller sources")
    least, low, middle, high, most, longest = card.lengths
    console.print(
        f"characters: {least} at least, {low} / {middle} / {high} quartiles, {most} at 95 %, {longest} at most"
    )
    console.print(f"{card.duplicates} exact duplicates; {card.near_duplicates} rows repeat or nearly repeat another")
    if card.conflicts:
        console.print(f"{card.conflicting_rows} rows in {card.conflicts} groups of like texts have different labels:")
    for conflict in card.first_conflicts:
        labels = ", ".join(f"{label} ({'; '.join(rows)})" for label, rows in conflict.rows.items())
        console.print(f"  {conflict.text[:SHOWN_CHARACTERS]!r}: {labels}", markup=False, soft_wrap=True)
