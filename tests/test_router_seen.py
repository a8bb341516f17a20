"""Sketches of training prompts: what is alike is found, at once among many, exactly as by comparing all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from collegium.router.seen import ALIKE, SEEN, SKETCH, alike_rows, seen_file, seen_rows, sketches

LONG = "how may a landlord who is late with the repairs of a flat end the contract of a tenant who pays in time"


def test_bands_find_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 3, (200, SKETCH), dtype=np.uint8)
    asked = rng.integers(0, 3, (300, SKETCH), dtype=np.uint8)
    asked[:200] = known
    for row in range(200):
        places = rng.choice(SKETCH, row % 8, replace=False)
        asked[row, places] += 3
    slow = np.flatnonzero([((known == sketch).sum(axis=1) >= ALIKE).any() for sketch in asked])
    assert 50 < len(slow) < 300 and alike_rows(known, asked).tolist() == slow.tolist()


def test_training_prompts_are_known_again(tmp_path: Path) -> None:
    (tmp_path / SEEN).write_bytes(seen_file([LONG, "what is a tort", "what is a tort"]))
    asked = ["What is a TORT?", LONG.replace("in time", "on time"), "what is a torte", "", LONG[:40]]
    assert seen_rows(tmp_path, asked).tolist() == [0, 1]
    assert seen_rows(tmp_path, []).tolist() == [] == seen_rows(tmp_path / "none", asked).tolist()
    assert sketches([LONG]).shape == (1, SKETCH)
