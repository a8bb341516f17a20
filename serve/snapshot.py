"""The edge's view of the registry: one immutable version of it, with whom to ask and at which address."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..experts.backends import AdapterBackend, Backend, EngineBackend, PromptedBackend, RemoteBackend, Sampling
from ..experts.card import Card, Limits, relative_costs
from ..experts.registry import ExpertRecord, KeyRecord, SkillRecord
from ..experts.state import engine_key
from ..router.decision import Candidate
from ..router.posterior import Posterior
from ..router.shortlist import Shortlist
from ..router.skills import Skill, candidate
from .auth import Keyring, permitted


class RoutingModel(Protocol):
    """What the edge asks of a router: collegium.router.artefact.Router, or anything like it."""

    @property
    def version(self) -> str: ...

    def posterior(self, text: str) -> Posterior: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where an expert's requests go. `vouched` means that we run the engine, so its words about a request may pass.

    `urls` are its replicas, `url` among them. `retry_safe`: a request that it may have begun can be sent again.
    `continues`: the engine's plain completion of prompt and answer so far is the rest of the answer.
    """

    expert: str
    url: str
    model: str
    key: str | None = field(repr=False)
    vouched: bool
    system_prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    retry_safe: bool = False
    continues: bool = False
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.urls:
            object.__setattr__(self, "urls", (self.url,))

    def at(self, url: str) -> Target:
        """The replica at this URL."""
        return self if url == self.url else replace(self, url=url)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the registry. `targets` holds the experts that can be asked now, `pool` all of them."""

    known: Mapping[str, Candidate]
    pool: Shortlist
    targets: Mapping[str, Target]
    updated: Mapping[str, int]
    keys: Keyring
    router: RoutingModel
    _permitted: dict[str, frozenset[str] | None] = field(default_factory=dict, repr=False)

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.pool.experts

    def permitted(self, key: KeyRecord | None) -> frozenset[str] | None:
        """Names of the experts that a key may use, or None for all."""
        if key is None:
            return None
        if key.name not in self._permitted:
            self._permitted[key.name] = permitted(key, self.candidates)
        return self._permitted[key.name]


class Sources:
    """The secrets that targets are built with. `environment` holds the keys that remote cards name."""

    def __init__(self, internal_key: str, environment: Mapping[str, str]) -> None:
        self._internal_key = internal_key
        self._environment = environment

    def target(self, record: ExpertRecord, known: Mapping[str, ExpertRecord]) -> Target | None:
        """Where the expert answers now, or None while it does not."""
        card = record.card
        if record.removed:
            return None
        if isinstance(card.backend, PromptedBackend):
            engine = known.get(card.backend.engine)
            borrowed = self._own(engine) if engine else None
            if borrowed is None:
                return None
            prompt, sampling = card.backend.system_prompt, card.backend.sampling
            return replace(borrowed, expert=card.name, system_prompt=prompt, sampling=sampling)
        return self._own(record)

    def _own(self, record: ExpertRecord) -> Target | None:
        card = record.card
        if not record.routable or record.base_url is None:
            return None
        if isinstance(card.backend, RemoteBackend):
            # URLs, model and key from the same card: a half-replaced expert never sends one's key to the other's URL.
            name = card.backend.api_key_env
            key = self._environment.get(name) if name else None
            listed = tuple(address.url for address in card.backend.addresses)
            urls = tuple(url for url in listed if url in record.base_urls) or listed
            return Target(card.name, urls[0], card.backend.model, key, vouched=False, urls=urls)
        if isinstance(card.backend, EngineBackend):
            key = engine_key(self._internal_key, card.name)
            return Target(card.name, record.base_url, card.name, key, vouched=True)
        if isinstance(card.backend, AdapterBackend):
            url, _, model = record.base_url.partition("#")
            key = engine_key(self._internal_key, card.backend.engine)
            return Target(card.name, url, model, key, vouched=True) if model else None
        return None


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of an expert, and of what: its record, those it borrows from, its skills and its cost."""

    lenders: tuple[ExpertRecord, ...]
    skills: tuple[SkillRecord, ...]
    cost: float
    candidate: Candidate
    target: Target | None


class Builder:
    """Makes snapshots from what the registry holds; what has not changed is made once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._made: dict[str, _Made] = {}
        self._pool = Shortlist(())

    def build(
        self,
        records: Iterable[ExpertRecord],
        skills: Iterable[SkillRecord],
        keys: Iterable[KeyRecord],
        router: RoutingModel,
    ) -> Snapshot:
        present = {record.name: record for record in records if not record.removed}
        measured: dict[str, tuple[SkillRecord, ...]] = {}
        for skill in skills:
            measured[skill.expert] = (*measured.get(skill.expert, ()), skill)
        costs = relative_costs(record.card for record in present.values())
        self._made = {
            name: self._make(record, present, measured.get(name, ()), costs[name]) for name, record in present.items()
        }
        known = {name: made.candidate for name, made in self._made.items()}
        return Snapshot(
            known=known,
            pool=self._pooled(tuple(known.values())),
            targets={name: made.target for name, made in self._made.items() if made.target is not None},
            updated={name: int(record.updated) for name, record in present.items()},
            keys=Keyring(keys),
            router=router,
        )

    def _make(
        self, record: ExpertRecord, present: Mapping[str, ExpertRecord], skills: tuple[SkillRecord, ...], cost: float
    ) -> _Made:
        lenders = _lenders(record, present)
        before = self._made.get(record.name)
        if before is not None and (before.lenders, before.skills, before.cost) == (lenders, skills, cost):
            return before
        engine = lenders[-1].card
        target = self._sources.target(record, present)
        candidate = _candidate(record.card, engine, skills, cost, target is not None)
        bounded = _bounded(target, record.card, engine) if target is not None else None
        return _Made(lenders, skills, cost, candidate, bounded)

    def _pooled(self, candidates: tuple[Candidate, ...]) -> Shortlist:
        """Ready for the labels that decisions were made under: the event loop has no time for it."""
        if candidates != self._pool.experts:
            self._pool = self._pool.changed(candidates)
        return self._pool


def _lenders(record: ExpertRecord, known: Mapping[str, ExpertRecord]) -> tuple[ExpertRecord, ...]:
    """The record and those that it borrows from; the last one's engine answers."""
    lender = known.get(record.card.borrowed_engine or "")
    return (record,) if lender is None else (record, *_lenders(lender, known))


def _bounded(target: Target, card: Card, engine: Card) -> Target:
    """With what the cards say of its limits and of a second sending; an engine's work is ours to do twice.

    An engine has its places once, however many cards it answers for.
    """
    backend = engine.backend
    return replace(
        target,
        limits=card.limits.model_copy(update={"concurrency": engine.limits.concurrency}),
        retry_safe=target.vouched or (isinstance(backend, RemoteBackend) and backend.retry_safe),
        continues=_continues(backend),
    )


def _continues(backend: Backend) -> bool:
    if isinstance(backend, RemoteBackend):
        return backend.continues
    return isinstance(backend, EngineBackend) and "reasoning_parser" not in backend.options


def _candidate(card: Card, engine: Card, skills: Sequence[SkillRecord], cost: float, ready: bool) -> Candidate:
    return candidate(
        card.name,
        declared=card.domains,
        default_skill=card.declared_default,
        measured={skill.domain: Skill(skill.right, skill.total) for skill in skills},
        admitted={*card.admitted, *(skill.domain for skill in skills if skill.admitted)},
        generalist=card.generalist,
        cost=cost,
        ready=ready,
        context_window=_window(card) or _window(engine),
        capabilities={*card.capabilities, *engine.capabilities},
    )


def _window(card: Card) -> int | None:
    if card.limits.context_window is None and isinstance(card.backend, EngineBackend):
        return card.backend.max_model_len
    return card.limits.context_window
