"""What labels can be learned, and which ones look like another one's misspelling."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

MIN_LABELS = 2
MIN_ROWS_PER_LABEL = 8
SHOWN = 5
RARE = 10
"""A label with so many times fewer rows than one spelt nearly alike is taken for a slip."""

_SEPARATORS = re.compile(r"[\s_-]+")
_DIGITS = re.compile(r"\d+")


def label_problem(counts: Mapping[str, int], first_row: Mapping[str, str], confirmed: Collection[str]) -> str | None:
    """Why these labels cannot be learned, in words, or None.

    `first_row` says where each label stands first; `confirmed` are labels that the user vouches for.
    """
    if len(counts) < MIN_LABELS:
        return f"has {len(counts)} label{'s' * (len(counts) != 1)}; a router needs at least {MIN_LABELS}"
    spelt: dict[str, str] = {}
    for label in sorted(counts):
        twin = spelt.setdefault(folded(label), label)
        if twin != label:
            return f"labels {twin!r} and {label!r} differ in case, blanks or hyphens only; make them one"
    slips = [(label, likely) for label, likely in misspelt(counts).items() if label not in confirmed]
    if slips:
        said = "; ".join(
            f"{first_row[label]}: label {label!r} ({_rows(counts[label])}) looks like "
            f"{likely!r} ({_rows(counts[likely])})"
            for label, likely in slips[:SHOWN]
        )
        return f"{said}; correct {'them' if len(slips) > 1 else 'it'}, or name all labels with --labels"
    rare = [label for label, count in sorted(counts.items()) if count < MIN_ROWS_PER_LABEL]
    if rare:
        said = ", ".join(f"{label!r} has {counts[label]} ({first_row[label]})" for label in rare[:SHOWN])
        more = f" and {len(rare) - SHOWN} more" * (len(rare) > SHOWN)
        return f"a label needs at least {MIN_ROWS_PER_LABEL} rows; {said}{more}"
    return None


def folded(label: str) -> str:
    """The label but for case, blanks and hyphens."""
    return _SEPARATORS.sub("", label.casefold())


def misspelt(counts: Mapping[str, int]) -> dict[str, str]:
    """Rare labels, each with the frequent one that it is probably meant to be."""
    by_rows = sorted(counts, key=lambda label: (-counts[label], label))
    found: dict[str, str] = {}
    for label, count in counts.items():
        enough = min(RARE * count, MIN_ROWS_PER_LABEL) if count < MIN_ROWS_PER_LABEL else RARE * count
        for other in by_rows:
            if counts[other] < enough:
                break
            if other != label and spelt_alike(label, other):
                found[label] = other
                break
    return found


def spelt_alike(first: str, second: str) -> bool:
    """One slip apart, or two in labels of 8 letters or more; `level 1` and `level 2` are different on purpose."""
    first, second = first.casefold(), second.casefold()
    if min(len(first), len(second)) < 4 or _DIGITS.sub("", first) == _DIGITS.sub("", second):
        return False
    limit = 1 if min(len(first), len(second)) < 8 else 2
    return abs(len(first) - len(second)) <= limit and edit_distance(first, second) <= limit


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, ours in enumerate(first, start=1):
        earlier, before, row = before, row, [i]
        for j, theirs in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (ours != theirs))
            if i > 1 and j > 1 and ours == second[j - 2] and first[i - 2] == theirs:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
