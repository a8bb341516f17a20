"""Style made uninformative: prompts rewritten as exam items, chat lines and tasks, misspelt, cut, wrapped and mixed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .data import Prompt

Rewrite = Callable[[str, np.random.Generator], str]
"""(text, random numbers) -> the same prompt in another shape."""

STYLES = {
    "exam": (
        "{text}\nA. Yes\nB. No\nC. Only in some cases\nD. None of the above",
        "Which of the following is the best answer?\n{text}\n(A) the first (B) the second (C) both (D) neither",
        "Question: {text}\nChoose the most appropriate option.\nAnswer:",
        "{text} Which of the following is most likely correct? A) B) C) D)",
        "Statement 1 | {text} Statement 2 | The opposite holds. Which of the statements is true?",
        "The following is a multiple choice question. {text} The correct answer is",
        "{text} Select all that apply.",
    ),
    "chat": (
        "hey, quick question: {lower}",
        "hi! {lower} thanks in advance",
        "ok so {lower}",
        "can you help me with this? {lower}",
        "{lower} pls",
        "sorry if this is a stupid question but {lower}",
        "been wondering about this all day. {lower} any ideas?",
    ),
    "task": (
        "Answer the following. {text}",
        "You are a helpful assistant. {text} Explain step by step.",
        "### Instruction:\n{text}\n### Response:",
        "I need help with the following task.\n\n{text}",
        "Please read carefully and respond in detail: {text}",
        "{text}\n\nKeep your answer short and precise.",
    ),
}
EARLIER_TURNS = (
    "hi there",
    "thanks, that helped!",
    "ok, next question",
    "are you still there?",
    "I have one more thing",
)
LATER_TURNS = (
    "and why is that?",
    "please explain it in more detail",
    "can you give me an example?",
    "is that always so?",
)

_NEIGHBOURS = {
    letter: (row[max(0, place - 1) : place] + row[place + 1 : place + 2])
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for place, letter in enumerate(row)
}
_LETTERS = re.compile(r"[a-z]", re.IGNORECASE)
CHARACTERS_A_TYPO = 30


def typos(text: str, rng: np.random.Generator) -> str:
    """One slip of the keyboard in every CHARACTERS_A_TYPO characters, at least one: swapped, lost, doubled, beside."""
    characters = list(text)
    places = [place for place, letter in enumerate(characters) if _LETTERS.match(letter)]
    if not places:
        return text
    count = min(len(places), max(1, len(text) // CHARACTERS_A_TYPO))
    for place in sorted(rng.choice(places, size=count, replace=False).tolist(), reverse=True):
        _slip(characters, place, int(rng.integers(4)), rng)
    return "".join(characters)


def casing(text: str, rng: np.random.Generator) -> str:
    """All lower, all upper, or every word capitalised."""
    return (str.lower, str.upper, str.title)[int(rng.integers(3))](text)


def truncation(text: str, rng: np.random.Generator) -> str:
    """The first 60 to 90 % of the words; texts of fewer than 6 words stay."""
    words = text.split(" ")
    if len(words) < 6:
        return text
    return " ".join(words[: max(4, round(len(words) * rng.uniform(0.6, 0.9)))])


def wrapper(text: str, rng: np.random.Generator) -> str:
    """The prompt inside the phrases of a chat."""
    return _shaped(text, STYLES["chat"], rng)


def turns(text: str, rng: np.random.Generator) -> str:
    """The prompt between other turns of a conversation, as the router reads it: a line each."""
    if rng.random() < 0.5:
        return f"{EARLIER_TURNS[int(rng.integers(len(EARLIER_TURNS)))]}\n{text}"
    return f"{text}\n{LATER_TURNS[int(rng.integers(len(LATER_TURNS)))]}"


PERTURBATIONS: dict[str, Rewrite] = {
    "typos": typos,
    "casing": casing,
    "truncation": truncation,
    "wrapper": wrapper,
    "turns": turns,
}
"""Changes that leave the domain as it is: for the robustness table and for training."""


def restyle(text: str, rng: np.random.Generator) -> str:
    """The prompt as exam item, chat line or task."""
    styles = tuple(STYLES.values())
    return _shaped(text, styles[int(rng.integers(len(styles)))], rng)


def augmented(text: str, rng: np.random.Generator) -> str:
    """What training reads instead of a prompt: half of the time as it is, else restyled, perturbed, or both."""
    chance = rng.random()
    if chance < 0.5:
        return text
    if chance < 0.75 or chance >= 0.9:
        text = restyle(text, rng)
    if chance >= 0.75:
        rewrites = tuple(PERTURBATIONS.values())
        text = rewrites[int(rng.integers(len(rewrites)))](text, rng)
    return text


def mixed(first: str, second: str, rng: np.random.Generator) -> str:
    """Two prompts in one (Mosaic-IT, Li et al. 2024); its label is half of each."""
    joint = ("\n", "\n\n", " ", " Also, ", "\nand another thing: ")[int(rng.integers(5))]
    return f"{first}{joint}{second}"


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
                made.append(replace(prompt, text=_shaped(prompt.text, shapes, rng)))
    return made


def _shaped(text: str, shapes: Sequence[str], rng: np.random.Generator) -> str:
    return shapes[int(rng.integers(len(shapes)))].format(text=text, lower=text.lower().rstrip("?. "))


def _slip(characters: list[str], place: int, which: int, rng: np.random.Generator) -> None:
    letter = characters[place]
    if which == 0 and place + 1 < len(characters):
        characters[place : place + 2] = [characters[place + 1], letter]
    elif which == 1 and len(characters) > 1:
        del characters[place]
    elif which == 2:
        characters.insert(place, letter)
    else:
        beside = _NEIGHBOURS[letter.lower()]
        characters[place] = beside[int(rng.integers(len(beside)))]
