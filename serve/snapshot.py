"""The edge's view of the registry: immutable, refreshed by a thread, kept when the registry errs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..experts.backends import AdapterBackend, Backend, EngineBackend, PromptedBackend, RemoteBackend, Sampling
from ..experts.card import Card, Limits, relative_costs
from ..experts.registry import ExpertRecord, KeyRecord, Registry, RegistryError, SkillRecord
from ..experts.state import engine_key
from ..router.decision import Candidate
from ..router.posterior import Posterior
from ..router.skills import Skill, candidate
from .auth import Keyring
from .settings import REFRESH

logger = logging.getLogger("collegium.edge")


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
    """One version of the registry. `targets` holds the experts that can be asked now."""

    candidates: tuple[Candidate, ...]
    targets: Mapping[str, Target]
    updated: Mapping[str, int]
    keys: Keyring
    router: RoutingModel

    def candidate(self, name: str) -> Candidate | None:
        return next((one for one in self.candidates if one.name == name), None)


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


def build(
    records: Sequence[ExpertRecord],
    skills: Sequence[SkillRecord],
    keys: Sequence[KeyRecord],
    router: RoutingModel,
    sources: Sources,
) -> Snapshot:
    """A snapshot from what the registry holds."""
    present = {record.name: record for record in records if not record.removed}
    found = {name: sources.target(record, present) for name, record in present.items()}
    targets = {name: _bounded(target, present) for name, target in found.items() if target is not None}
    costs = relative_costs(record.card for record in present.values())
    return Snapshot(
        candidates=tuple(
            _candidate(record.card, present, skills, costs[name], name in targets) for name, record in present.items()
        ),
        targets=targets,
        updated={name: int(record.updated) for name, record in present.items()},
        keys=Keyring(keys),
        router=router,
    )


def _bounded(target: Target, known: Mapping[str, ExpertRecord]) -> Target:
    """With what the cards say of its limits and of a second sending; an engine's work is ours to do twice.

    An engine has its places once, however many cards it answers for.
    """
    card = known[target.expert].card
    lender = _borrowed(card, known)
    engine = lender.backend
    return replace(
        target,
        limits=card.limits.model_copy(update={"concurrency": lender.limits.concurrency}),
        retry_safe=target.vouched or (isinstance(engine, RemoteBackend) and engine.retry_safe),
        continues=_continues(engine),
    )


def _continues(backend: Backend) -> bool:
    if isinstance(backend, RemoteBackend):
        return backend.continues
    return isinstance(backend, EngineBackend) and "reasoning_parser" not in backend.options


def _candidate(
    card: Card, known: Mapping[str, ExpertRecord], skills: Sequence[SkillRecord], cost: float, ready: bool
) -> Candidate:
    measured = [skill for skill in skills if skill.expert == card.name]
    engine = _borrowed(card, known)
    return candidate(
        card.name,
        declared=card.domains,
        default_skill=card.declared_default,
        measured={skill.domain: Skill(skill.right, skill.total) for skill in measured},
        admitted={*card.admitted, *(skill.domain for skill in measured if skill.admitted)},
        generalist=card.generalist,
        cost=cost,
        ready=ready,
        context_window=_window(card) or _window(engine),
        capabilities={*card.capabilities, *engine.capabilities},
    )


def _borrowed(card: Card, known: Mapping[str, ExpertRecord]) -> Card:
    """The card whose engine answers: its own, or the one at the end of those that it borrows from."""
    lender = known.get(card.borrowed_engine or "")
    return _borrowed(lender.card, known) if lender is not None and lender.name != card.name else card


def _window(card: Card) -> int | None:
    if card.limits.context_window is None and isinstance(card.backend, EngineBackend):
        return card.backend.max_model_len
    return card.limits.context_window


class Watcher:
    """Holds the newest snapshot and looks for a newer one every REFRESH seconds."""

    def __init__(
        self,
        registry: Registry,
        sources: Sources,
        router: RoutingModel,
        load: Callable[[str], RoutingModel] | None = None,
    ) -> None:
        """`router` serves until another is promoted; `load` turns a promoted path into a router, or raises ValueError.

        Raises:
            RegistryError: the registry cannot be read.
        """
        self._registry = registry
        self._sources = sources
        self._starter = router
        self._router = router
        self._load = load
        self._path: str | None = None
        self._version = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)
        self.snapshot = self._read()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _watch(self) -> None:
        failing = False
        while not self._stop.wait(REFRESH):
            try:
                if self._registry.version() != self._version:
                    self.snapshot = self._read()
                failing = False
            except (RegistryError, ValueError) as error:
                if not failing:
                    logger.warning("the registry cannot be read, the last snapshot stands: %s", error)
                failing = True

    def _read(self) -> Snapshot:
        # The version first: a write in between is read twice rather than missed.
        version = self._registry.version()
        self._switch_router(self._registry.active_router())
        snapshot = build(
            self._registry.experts(), self._registry.skills(), self._registry.keys(), self._router, self._sources
        )
        self._version = version
        return snapshot

    def _switch_router(self, path: str | None) -> None:
        if path == self._path or self._load is None:
            return
        try:
            self._router = self._starter if path is None else self._load(path)
        except (RuntimeError, ValueError, OSError) as error:
            logger.warning("router %s is refused, %s goes on: %s", path, self._router.version, error)
            return
        self._path = path
        logger.info("router %s is active", self._router.version)
