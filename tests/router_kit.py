"""The real encoder, loaded once for all tests, and small labelled data."""

from __future__ import annotations

import functools

from collegium.experts.weights import locate
from collegium.router.encoder import Encoder, EncoderId, load_encoder
from collegium.router.manifest import TextRecord

SUBJECTS = {
    "coding": [
        "python list",
        "null pointer",
        "git rebase",
        "sql join",
        "regex match",
        "unit test",
        "rust borrow",
        "css grid",
    ],
    "law": ["landlord", "contract", "tort", "court fine", "divorce", "copyright", "visa appeal", "last will"],
    "math": ["integral", "prime number", "matrix rank", "triangle area", "probability", "limit", "proof", "fraction"],
}
SHAPES = ["explain {} to me", "i have a problem with {}, what now?", "{}: where do i start"]


@functools.cache
def minilm() -> Encoder:
    return load_encoder(EncoderId(), TextRecord().tokens, locate)


def labelled() -> list[tuple[str, str]]:
    """(text, label): 24 different prompts of each of three labels."""
    return [
        (shape.format(subject), label) for shape in SHAPES for label, group in SUBJECTS.items() for subject in group
    ]
