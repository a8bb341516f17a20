"""Restyling: alike for every label, the words kept, the same for the same seed."""

from __future__ import annotations

from collections import Counter

from collegium.training.augment import STYLES, restyled
from collegium.training.data import Prompt

PROMPTS = [
    Prompt(i, f"What {{is}} thing {i} of {label}?", label, "own") for label in ("law", "math") for i in range(20)
]


def test_every_label_gets_as_many_rewrites_of_every_style() -> None:
    made = restyled(PROMPTS, 7, seed=1)
    assert Counter(prompt.label for prompt in made) == {"law": 7 * len(STYLES), "math": 7 * len(STYLES)}
    originals = {(prompt.row, prompt.label): prompt.text for prompt in PROMPTS}
    for prompt in made:
        text = originals[prompt.row, prompt.label]
        assert text.lower().rstrip("?") in prompt.text.lower() and prompt.text != text and prompt.source == "own"


def test_the_seed_decides_and_scarce_labels_are_used_up() -> None:
    assert restyled(PROMPTS, 7, seed=1) == restyled(PROMPTS, 7, seed=1) != restyled(PROMPTS, 7, seed=2)
    assert len(restyled(PROMPTS, 100, seed=1)) == 2 * 20 * len(STYLES)
