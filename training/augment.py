"""Style made uninformative: the same prompts as exam items, chat lines and task instructions, alike for every label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .data import Prompt

STYLES = {
    "exam": (
        "{text}\nA. Yes\nB. No\nC. Only in some cases\nD. None of the above",
        "Which of the following is the best answer?\n{text}\n(A) the first (B) the second (C) both (D) neither",
        "Question: {text}\nChoose the most appropriate option.\nAnswer:",
        "{text} Which of the following is most likely correct? A) B) C) D)",
        "Statement 1 | {text} Statement 2 | The opposite holds. Which of the statements is true?",
    ),
    "chat": (
        "hey, quick question: {lower}",
        "hi! {lower} thanks in advance",
        "ok so {lower}",
        "can you help me with this? {lower}",
        "{lower} pls",
    ),
    "task": (
        "Answer the following. {text}",
        "You are a helpful assistant. {text} Explain step by step.",
        "### Instruction:\n{text}\n### Response:",
        "I need help with the following task.\n\n{text}",
        "Please read carefully and respond in detail: {text}",
    ),
}


def restyled(prompts: Sequence[Prompt], rows_per_label: int, seed: int) -> list[Prompt]:
    """For each label and style as many rewrites, of prompts drawn without replacement, so that no style tells a label.

    A rewrite keeps its prompt's row, label and source.
    """
    rng = np.random.default_rng(seed)
    by_label: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_label[prompt.label].append(prompt)
    made = []
    for label in sorted(by_label):
        for shapes in STYLES.values():
            count = min(rows_per_label, len(by_label[label]))
            for position in rng.choice(len(by_label[label]), size=count, replace=False):
                prompt = by_label[label][int(position)]
                shape = shapes[int(rng.integers(len(shapes)))]
                made.append(
                    replace(prompt, text=shape.format(text=prompt.text, lower=prompt.text.lower().rstrip("?. ")))
                )
    return made
