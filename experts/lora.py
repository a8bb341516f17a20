"""Adapters on running engines: every replica is made to hold what the registry wants, whatever it held before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from .adapter_staging import Staged, stage, staging_folder, sweep
from .backends import AdapterBackend, EngineBackend
from .card import Card, CardError
from .ray_serve import App
from .reconcile import Loaded
from .records import ExpertRecord
from .replica import Replica, ReplicaState
from .state import StateFolder, engine_key

PERIOD = 2.0  # seconds between two looks at a replica
GRACE = 2.0  # seconds in which every edge has seen that an adapter goes
LONGEST_DRAIN = 120.0  # seconds a running request may keep an adapter that goes
LONGEST_PAUSE = 60.0  # seconds between two tries of an adapter that cannot be used


@dataclass(slots=True)
class _Wanted:
    """An adapter card and, once it was checked, its staged files."""

    card: Card
    engine: str
    work: Future[Staged] | None = None
    staged: Staged | None = None
    problem: str = ""
    failures: int = 0
    due: float = 0.0


@dataclass(slots=True)
class _Held:
    """A replica of the application at base URL `app`: what it held when last seen, and what it refused until when."""

    replica: Replica
    app: str
    engine: str
    work: Future[ReplicaState] | None = None
    loaded: frozenset[str] | None = None
    refused: dict[str, tuple[str, float]] = field(default_factory=dict)
    leaving: dict[str, float] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    due: float = 0.0


class Adapters:
    """Checks, loads and unloads in threads of its own."""

    def __init__(self, state: StateFolder, *, local: bool = True) -> None:
        """`local` says that engines run on this machine and can read the state folder."""
        self._home = staging_folder(state) if local else None
        self._internal_key = state.internal_key()
        self._wanted: dict[tuple[str, str, str], _Wanted] = {}
        self._held: dict[str, _Held] = {}
        self._answering: dict[tuple[str, str], str] = {}
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="adapters")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for held in self._held.values():
            held.replica.close()

    def update(self, records: Sequence[ExpertRecord], apps: Mapping[str, App]) -> Mapping[tuple[str, str], Loaded]:
        """Start what is due, collect what is done; returns at once.

        The result is by the application's base URL and the expert's name; what was not looked at yet is not in it.
        """
        now = time.monotonic()
        cards = {record.name: record.card for record in records if not record.removed}
        self._want(cards)
        self._hold(cards, apps)
        for wanted in self._wanted.values():
            self._stage(wanted, cards.get(wanted.engine), now)
        for held in self._held.values():
            self._settle(held, now)
        report = dict(self._report())
        self._remember(report)
        self._sweep()
        return report

    def _want(self, cards: Mapping[str, Card]) -> None:
        """An adapter is checked again when its card changed, or its engine's."""
        before, self._wanted = self._wanted, {}
        for card in cards.values():
            if isinstance(card.backend, AdapterBackend):
                engine = cards.get(card.backend.engine)
                key = (card.name, card.engine_fingerprint, engine.engine_fingerprint if engine else "")
                self._wanted[key] = before.get(key) or _Wanted(card, card.backend.engine)

    def _hold(self, cards: Mapping[str, Card], apps: Mapping[str, App]) -> None:
        """Only applications of the engine's card as it is now: one from before may have no room for adapters."""
        fitting = {
            (card.name, card.engine_fingerprint)
            for card in cards.values()
            if isinstance(card.backend, EngineBackend) and card.backend.adapters is not None
        }
        before = self._held
        self._held = {
            url: before.get(url)
            or _Held(Replica(url, engine_key(self._internal_key, app.expert)), app.base_url, app.expert)
            for app in apps.values()
            if app.phase in ("running", "restarting") and (app.expert, app.fingerprint) in fitting
            for url in app.replicas
        }
        for url in before.keys() - self._held.keys():
            before[url].replica.close()

    def _stage(self, wanted: _Wanted, engine: Card | None, now: float) -> None:
        if wanted.work is not None and wanted.work.done():
            try:
                wanted.staged, wanted.problem = wanted.work.result(), ""
            except (CardError, OSError) as error:
                wanted.failures += 1
                wanted.problem = str(error)
                wanted.due = now + min(2.0**wanted.failures, LONGEST_PAUSE)
            wanted.work = None
        usable = engine is not None and isinstance(engine.backend, EngineBackend)
        if wanted.staged is None and wanted.work is None and now >= wanted.due and engine is not None and usable:
            wanted.work = self._pool.submit(stage, wanted.card, engine, self._home)

    def _settle(self, held: _Held, now: float) -> None:
        if held.work is not None and held.work.done():
            seen, held.work = held.work.result(), None
            held.loaded = seen.loaded
            held.refused |= {name: (reason, now + LONGEST_PAUSE / 4) for name, reason in seen.refused.items()}
            held.refused = {name: why for name, why in held.refused.items() if name not in (seen.loaded or ())}
        mine = {w.staged.model: w.staged.folder for w in self._on(held.engine) if w.staged is not None}
        if held.work is None and (now >= held.due or mine.keys() - held.asked):
            load = {name: folder for name, folder in mine.items() if now >= held.refused.get(name, ("", 0.0))[1]}
            unload = self._leaving(held, now)
            overdue = frozenset(name for name in unload if now - held.leaving[name] > LONGEST_DRAIN)
            held.asked, held.due = frozenset(mine), now + PERIOD
            held.work = self._pool.submit(held.replica.settle, load, unload, overdue)

    def _leaving(self, held: _Held, now: float) -> frozenset[str]:
        """What the replica holds and nobody wants; nothing before all cards of its engine were looked at."""
        mine = self._on(held.engine)
        if held.loaded is None or any(wanted.staged is None and not wanted.problem for wanted in mine):
            return frozenset()
        kept = {wanted.staged.model for wanted in mine if wanted.staged is not None}
        kept |= {self._answering.get((held.app, wanted.card.name), "") for wanted in mine}
        held.leaving = {name: held.leaving.get(name, now) for name in held.loaded - kept}
        return frozenset(name for name, since in held.leaving.items() if now - since > GRACE)

    def _on(self, engine: str) -> list[_Wanted]:
        return [wanted for wanted in self._wanted.values() if wanted.engine == engine]

    def _report(self) -> Iterator[tuple[tuple[str, str], Loaded]]:
        for app, engine in {held.app: held.engine for held in self._held.values()}.items():
            replicas = [held for held in self._held.values() if held.app == app]
            for wanted in self._on(engine):
                loaded = self._loaded(app, wanted, replicas)
                if loaded is not None:
                    yield (app, wanted.card.name), loaded
            names = {wanted.card.name for wanted in self._on(engine)}
            held_names = {name.rpartition("-")[0] for held in replicas for name in held.loaded or ()}
            for name in held_names - names:
                yield (app, name), Loaded(None, "finishing the requests that run")

    def _remember(self, report: Mapping[tuple[str, str], Loaded]) -> None:
        """Which name answers for an expert on an application; it stays until its successor is loaded."""
        apps = {held.app for held in self._held.values()}
        self._answering = {key: model for key, model in self._answering.items() if key[0] in apps}
        for key, loaded in report.items():
            if loaded.model is not None:
                self._answering[key] = loaded.model
            else:
                self._answering.pop(key, None)

    def _loaded(self, app: str, wanted: _Wanted, replicas: Sequence[_Held]) -> Loaded | None:
        """Ready with the first replica: the others load it with their next look, or with its first request there."""
        before = self._answering.get((app, wanted.card.name))
        if wanted.staged is None:
            return Loaded(before, wanted.problem, failed=True) if wanted.problem else None
        model = wanted.staged.model
        seen = [held for held in replicas if held.loaded is not None]
        refusal = next((held.refused[model][0] for held in seen if model in held.refused), None)
        if refusal is not None:
            return Loaded(before if before != model else None, refusal, failed=True)
        if any(model in (held.loaded or ()) for held in seen):
            return Loaded(model)
        return Loaded(before, "the engine loads the adapter") if seen else None

    def _sweep(self) -> None:
        if self._home is None or any(held.loaded is None for held in self._held.values()):
            return
        kept = {wanted.staged.model for wanted in self._wanted.values() if wanted.staged is not None}
        kept |= {name for held in self._held.values() for name in held.loaded or ()}
        if all(wanted.work is None for wanted in self._wanted.values()):
            sweep(self._home, frozenset(kept), LONGEST_DRAIN)
