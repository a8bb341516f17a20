"""The card: an expert's declaration, checked at the border and kept as JSON in the registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from .backends import AdapterBackend, Backend, Name, PromptedBackend, Strict

Capability = Literal["tools", "json_schema", "vision", "logprobs"]
Probability = Annotated[float, Field(ge=0, le=1)]
Domain = Annotated[str, Field(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(gt=0, le=3600)]

RESERVED_NAMES = frozenset({"auto"})


class CardError(ValueError):
    """A card that cannot be used; the message names the field, its value and the accepted ones."""


class Cost(Strict):
    """US dollars per million tokens, and active parameters in billions where there is no price."""

    input: float | None = Field(None, ge=0)
    output: float | None = Field(None, ge=0)
    active_parameters: float | None = Field(None, gt=0)


class Limits(Strict):
    """`context_window` in tokens, prompt and completion together. `concurrency`: requests at a time.

    The times, in seconds, are how long the edge waits for this expert where that is less than for others: for a
    connection, for the first token and between tokens of a stream, and for a whole answer.
    """

    context_window: int | None = Field(None, ge=16)
    max_output_tokens: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1)
    connect: Seconds | None = None
    first_token: Seconds | None = None
    between_tokens: Seconds | None = None
    total: Seconds | None = None


class Card(Strict):
    """The declaration of an expert.

    `domains` declares skill: domain -> probability of a right answer, until evaluations measure it. `admitted` lists
    the domains the operator vouches for; elsewhere an expert waits until it beat the generalist. `default_skill` stands
    for domains not listed (0.5 for a generalist, 0.4 for others). `chat_template` is false for a base model that has
    none: evaluations then put their questions as plain completions.
    """

    name: Name
    description: str = Field("", max_length=2_000)
    backend: Backend
    generalist: bool = False
    domains: dict[Domain, Probability] = Field(default_factory=dict)
    admitted: list[Domain] = Field(default_factory=list)
    default_skill: Probability | None = None
    cost: Cost = Cost()
    limits: Limits = Limits()
    capabilities: list[Capability] = Field(default_factory=list)
    licence: str | None = None
    chat_template: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"name {self.name!r} is reserved; choose another")
        unknown = sorted(set(self.admitted) - set(self.domains))
        if unknown:
            raise ValueError(
                f"admitted names {unknown}, which domains does not declare; declared: {sorted(self.domains)}"
            )
        if self.borrowed_engine == self.name:
            raise ValueError(f"{self.backend.kind} expert {self.name!r} names itself as its engine")
        return self

    @property
    def declared_default(self) -> float:
        if self.default_skill is not None:
            return self.default_skill
        return 0.5 if self.generalist else 0.4

    @property
    def borrowed_engine(self) -> str | None:
        """Name of the card whose engine answers, where that is another's."""
        return self.backend.engine if isinstance(self.backend, (PromptedBackend, AdapterBackend)) else None

    @property
    def engine_fingerprint(self) -> str:
        """Changes exactly when what runs must change: a new skill or price restarts no engine."""
        return hashlib.sha256(self.backend.model_dump_json().encode()).hexdigest()[:10]


def parse_card(data: object) -> Card:
    """Check one card.

    Raises:
        CardError: one sentence a problem, each naming the field.
    """
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        raise CardError(_sentences(data, error)) from error


def _sentences(data: object, error: ValidationError) -> str:
    name = data.get("name") if isinstance(data, dict) else None
    who = f"card {name!r}" if isinstance(name, str) else "card"
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        steps = list(problem["loc"])
        if steps[:1] == ["backend"]:
            del steps[1:2]  # the union's tag is part of pydantic's path but not of the file
        path = ".".join(map(str, steps)) or "card"
        if problem["type"] == "extra_forbidden":
            found.append(f"{path} is not a known key")
        else:
            found.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}")
    return f"{who}: " + "; ".join(found)


def relative_costs(cards: Iterable[Card]) -> dict[str, float]:
    """Cost of each expert with the generalist's as 1.0: by price where all have one, else by active parameters.

    An expert without either counts as expensive as the generalist. One that borrows an engine and has no cost of its
    own has that of its engine's card.
    """
    known = {card.name: card for card in cards}
    costs = {name: own_cost(card, known) for name, card in known.items()}
    priced = all(cost.input is not None and cost.output is not None for cost in costs.values())
    amounts = {name: _amount(cost, priced) for name, cost in costs.items()}
    base = next((amounts[name] for name, card in known.items() if card.generalist and amounts[name]), None)
    if not base:
        return {name: 1.0 if amount is None else amount for name, amount in amounts.items()}
    return {name: 1.0 if amount is None else amount / base for name, amount in amounts.items()}


def own_cost(card: Card, known: Mapping[str, Card]) -> Cost:
    """The card's cost, or that of the engine it borrows where it names none."""
    lender = known.get(card.borrowed_engine or "")
    return lender.cost if lender is not None and card.cost == Cost() else card.cost


def _amount(cost: Cost, priced: bool) -> float | None:
    if priced and cost.input is not None and cost.output is not None:
        return cost.input + cost.output
    return cost.active_parameters
