"""Near duplicates share a group, and no split parts a group."""

from __future__ import annotations

import numpy as np
import pytest
from collegium.training.split import folds, near_duplicate_groups, rounds, source_folds
from hypothesis import given
from hypothesis import strategies as st

SOURCES = {"own": ["law", "math", "art"], "exam": ["math"], "forum": ["law"], "quiz": ["art", "law"]}
LONG = (
    "calculate the vapour pressure of ethanol at the given temperature when its enthalpy of vaporisation is known to us"
)


def test_exact_and_near_duplicates_share_a_group() -> None:
    texts = [LONG, LONG.upper() + "!", LONG.replace("to us", "to you"), "what is a tort", "what is a tart", "", ""]
    groups = near_duplicate_groups(texts).tolist()
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4], groups[5]}) == 4 and groups[5] == groups[6]


def test_groups_are_found_among_many() -> None:
    rows = 2_000
    texts = [f"question {i} asks about thing {i * 7} and place {i * 13}" for i in range(rows)]
    groups = near_duplicate_groups([*texts, *(text.upper() for text in texts)])
    assert (groups[:rows] == groups[rows:]).all() and len(np.unique(groups)) == rows


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=60), st.integers(0, 5))
def test_folds_never_part_a_group(rows: list[tuple[str, int]], seed: int) -> None:
    labels = [label for label, _ in rows]
    groups = np.array([group for _, group in rows])
    assigned = folds(labels, groups, 3, seed)
    for group in set(groups.tolist()):
        assert len(set(assigned[groups == group].tolist())) == 1
    seen = [held.tolist() for _, held in rounds(assigned, 3)]
    assert sorted(row for held in seen for row in held) == list(range(len(rows)))
    assert all(not set(train.tolist()) & set(held.tolist()) for train, held in rounds(assigned, 3))


def test_folds_spread_labels_evenly() -> None:
    labels = ["a"] * 50 + ["b"] * 10
    assigned = folds(labels, np.arange(60), 5, seed=1)
    for fold in range(5):
        held = np.flatnonzero(assigned == fold)
        assert np.sum(held < 50) == 10 and np.sum(held >= 50) == 2


def test_source_folds_keep_sources_whole_and_every_label_on_both_sides() -> None:
    rows = [(source, label) for source, labels in SOURCES.items() for label in labels for _ in range(5)]
    labels, sources = [label for _, label in rows], [source for source, _ in rows]
    assigned = source_folds(labels, sources, 3)
    for source in SOURCES:
        assert len({int(fold) for fold, its in zip(assigned, sources, strict=True) if its == source}) == 1
    for train, held in rounds(assigned, 3):
        assert {labels[row] for row in train} == {"law", "math", "art"} and len(held)


def test_a_label_of_one_source_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="label 'b' comes from one source only"):
        source_folds(["a", "a", "b"], ["x", "y", "x"], 2)
