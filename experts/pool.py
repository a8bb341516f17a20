"""Pools: YAML lists of cards, built in by name or from a file, checked as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from .adapter import resolved
from .backends import AdapterBackend, EngineBackend, PromptedBackend, RemoteBackend
from .card import Card, CardError, parse_card

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
    return parse_pool(rows, name_or_path, file.parent)


def parse_pool(rows: object, name: str, folder: Path | None = None) -> list[Card]:
    """Check a list of cards and how they fit together; `name` is for messages, `folder` for relative paths.

    Raises:
        CardError: everything that is wrong with it, in one message.
    """
    if not isinstance(rows, list) or not rows:
        raise CardError(f"pool {name!r} must be a YAML list of cards, with at least one")
    cards, problems = [], []
    for number, row in enumerate(rows, 1):
        try:
            card = parse_card(row)
            cards.append(resolved(card, folder) if folder else card)
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
    """Why a card that borrows an engine has none among `others`, or None."""
    if isinstance(card.backend, PromptedBackend):
        return _missing(card, card.backend.engine, others, "is no expert with an engine or a URL", PromptedBackend)
    if isinstance(card.backend, AdapterBackend):
        return _slots_problem(card, card.backend, list(others))
    return None


def _missing(card: Card, engine: str, others: Iterable[Card], what: str, *unfit: type[object]) -> str | None:
    fit = sorted(other.name for other in others if not isinstance(other.backend, unfit))
    if engine in fit:
        return None
    there = ", ".join(fit) or "none"
    return f"{card.backend.kind} expert {card.name!r} names the engine {engine!r}, which {what}; there are: {there}"


def _slots_problem(card: Card, backend: AdapterBackend, others: Sequence[Card]) -> str | None:
    engine = next((other.backend for other in others if other.name == backend.engine), None)
    if not isinstance(engine, EngineBackend):
        unfit = (PromptedBackend, AdapterBackend, RemoteBackend)
        return _missing(card, backend.engine, others, "is no expert with an engine of its own", *unfit)
    name, slots = backend.engine, engine.adapters
    if slots is None:
        return f"the engine of {name!r} takes no adapters; set `adapters: {{max: 8, max_rank: 16}}` in its backend"
    if backend.rank is not None and backend.rank > slots.max_rank:
        return f"expert {card.name!r} has rank {backend.rank}, the engine of {name!r} takes up to {slots.max_rank}"
    users = {other.name for other in others if _is_adapter_of(other, name)} | {card.name}
    if len(users) > slots.max:
        return f"the engine of {name!r} takes {slots.max} adapters, with {card.name!r} there are {len(users)}"
    return None


def _is_adapter_of(card: Card, engine: str) -> bool:
    return isinstance(card.backend, AdapterBackend) and card.backend.engine == engine
