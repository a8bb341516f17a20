"""A tiny n-gram router that knows novelty, prompts that it never saw, and their files."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from collegium.router.seen import alike_rows, sketches
from collegium.training.data import Prompt
from collegium.training.recipes import Options
from collegium.training.train import Trained, train
from router_kit import SUBJECTS

SHAPES = [
    "what is the matter with {}, and who could mend it?", "i never got {} right, can you help me", "{} for beginners",
    "write down three things about {}", "my friend asked me about {} today", "how long does it take to learn {}",
    "{}: explain it again, slowly", "which book should i read on {}", "why does {} fail so often", "is {} worth it",
    "tell me a fact on {}", "i need {} by tomorrow", "where can i find {} online", "compare {} with its alternatives",
    "what are the risks of {}", "give an example of {}", "who invented {}", "summarise {} in two lines", "{} again?",
    "a short history of {}", "common mistakes with {}", "does {} matter at all", "the best way to start {}",
    "someone said {} is hard", "do i need help with {}", "what should i ask about {}", "{} in five steps please",
]  # fmt: skip
FRESH_EVERY = 9


def known() -> list[Prompt]:
    """What the router is trained on."""
    return [prompt for prompt in _prompts() if prompt.row % FRESH_EVERY]


def fresh() -> list[Prompt]:
    """Other subjects in the same shapes, where these leave enough of a difference."""
    other = [prompt for prompt in _prompts() if not prompt.row % FRESH_EVERY]
    alike = alike_rows(sketches([prompt.text for prompt in known()]), sketches([prompt.text for prompt in other]))
    return [prompt for place, prompt in enumerate(other) if place not in set(alike.tolist())]


def _prompts() -> list[Prompt]:
    rows = [
        (shape.format(subject), label, f"source{place % 2}")
        for place, shape in enumerate(SHAPES)
        for label, group in SUBJECTS.items()
        for subject in group
    ]
    return [Prompt(row, text, label, source) for row, (text, label, source) in enumerate(rows, start=1)]


@functools.cache
def trained() -> Trained:
    return train(known(), "tfidf", options=Options(name="tiny"))


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> Path:
    rows = [{"text": prompt.text, "label": prompt.label, "source": prompt.source} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
