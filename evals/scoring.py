"""Scorers: what an output answered, and whether that is right. Nothing is ever guessed for a missing answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_STRICT_CHOICE = re.compile(r"answer(?:\s+is)?\s*:?\s*\(?([A-Z])\)?(?![A-Za-z])", re.IGNORECASE)
_LENIENT_CHOICE = re.compile(r"(?<![A-Za-z'])\(?([A-Z])\)?(?![A-Za-z'])")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def read_choice(output: str, count: int) -> str | None:
    """The letter answered: the last `Answer: X`, else the last capital standing alone, among the first `count` letters.

    A letter alone is read only where it cannot be a word: "I" and "A" must end the text or stand in brackets or before
    a full stop.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]
    strict: list[str] = [letter.upper() for letter in _STRICT_CHOICE.findall(output) if letter.upper() in letters]
    if strict:
        return strict[-1]
    for match in reversed(list(_LENIENT_CHOICE.finditer(output))):
        letter: str = match[1]
        after = output[match.end() : match.end() + 1]
        if letter in letters and (letter not in "AI" or match[0] != letter or after in ("", ".", ":", "\n", ")")):
            return letter
    return None


def read_number(output: str) -> str | None:
    """The final result: the last \\boxed{}, else what follows the last ####, else the last number; normalised."""
    boxed = _last_boxed(output)
    if boxed is not None:
        return normalise_number(boxed)
    if "####" in output:
        output = output.rpartition("####")[2]
    found = _NUMBER.findall(output)
    return normalise_number(found[-1]) if found else None


def normalise_number(text: str) -> str:
    """A number without thousands separators, currency, units of percent and trailing zeros; other text as it is."""
    plain = (
        text.strip().strip("$").replace("\\$", "").replace(",", "").replace("\\%", "").rstrip("%. ").replace(" ", "")
    )
    fraction = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", plain)
    if fraction:
        plain = f"{fraction[1]}{fraction[2]}/{fraction[3]}"
    try:
        value = float(plain)
    except ValueError:
        return plain
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def best_choice(logprobs: Sequence[float]) -> int:
    """Position of the most probable choice; of equals the first."""
    return max(range(len(logprobs)), key=lambda position: logprobs[position])


def per_character(logprobs: Sequence[float], choices: Sequence[str]) -> list[float]:
    """Log-probability a character of each choice's text: lm-evaluation-harness's acc_norm goes by the best of them."""
    return [value / max(1, len(choice)) for value, choice in zip(logprobs, choices, strict=True)]


def choice_probabilities(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of the choices, renormalised to sum 1."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


def brier(logprobs: Sequence[float], right: int) -> float:
    """Brier score of the renormalised choices, in [0, 2]."""
    return sum((p - (position == right)) ** 2 for position, p in enumerate(choice_probabilities(logprobs)))


def wrong_mass(logprobs: Sequence[float], right: int) -> float:
    """Probability, renormalised, on the wrong choices."""
    return 1 - choice_probabilities(logprobs)[right]


def _last_boxed(output: str) -> str | None:
    start = output.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for position in range(begin, len(output)):
        depth += {"{": 1, "}": -1}.get(output[position], 0)
        if depth == 0:
            return output[begin:position]
    return None
