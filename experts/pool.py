"""Pools: YAML lists of cards, built in by name or from a file, checked as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from .card import Card, CardError, PromptedBackend, parse_card

_FOLDER = Path(__file__).parent / "pools"


def builtin_pools() -> list[str]:
    """Names of the pools that ship with the package."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_pool(name_or_path: str) -> list[Card]:
    """The cards of a pool, by built-in name or path of a YAML file.

    Raises:
        CardError: everything that is wrong with it, in one message.
    """
    builtin = _FOLDER / f"{name_or_path}.yaml"
    file = builtin if name_or_path in builtin_pools() else Path(name_or_path).expanduser()
    try:
        rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(
            f"pool {name_or_path!r} is neither a readable file ({type(error).__name__}) "
            f"nor built in: {', '.join(builtin_pools())}"
        ) from error
    except yaml.YAMLError as error:
        raise CardError(f"pool {name_or_path!r} is not YAML: {' '.join(str(error).split())}") from error
    return parse_pool(rows, name_or_path)


def parse_pool(rows: object, name: str) -> list[Card]:
    """Check a list of cards and how they fit together; `name` is for messages.

    Raises:
        CardError: everything that is wrong with it, in one message.
    """
    if not isinstance(rows, list) or not rows:
        raise CardError(f"pool {name!r} must be a YAML list of cards, with at least one")
    cards, problems = [], []
    for number, row in enumerate(rows, 1):
        try:
            cards.append(parse_card(row))
        except CardError as error:
            problems.append(f"card {number}: {error}")
    # Without its broken cards a pool has follow-up errors that mean nothing.
    problems += [] if problems else pool_problems(cards)
    if problems:
        raise CardError(f"pool {name!r}: " + "\n".join(problems))
    return cards


def pool_problems(cards: Sequence[Card]) -> Iterator[str]:
    """What is wrong among cards that are each right."""
    for name, count in Counter(card.name for card in cards).items():
        if count > 1:
            yield f"{count} cards are named {name!r}; names must differ"
    if not any(card.generalist for card in cards):
        yield "no card is a generalist; set `generalist: true` on the one that answers when nobody is clearly better"
    known = {card.name: card for card in cards}
    for card in cards:
        if problem := engine_problem(card, known.values()):
            yield problem


def engine_problem(card: Card, others: Iterable[Card]) -> str | None:
    """Why a prompted card has no engine among `others`, or None."""
    if not isinstance(card.backend, PromptedBackend):
        return None
    engines = sorted(other.name for other in others if not isinstance(other.backend, PromptedBackend))
    if card.backend.engine in engines:
        return None
    return (
        f"prompted expert {card.name!r} names the engine {card.backend.engine!r}, which is no expert with an engine or "
        f"a URL; there are: {', '.join(engines) or 'none'}"
    )
