"""What to do so that what runs becomes what the registry asks for: a pure function of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .backends import AdapterBackend, Address, EngineBackend, PromptedBackend, RemoteBackend
from .card import Card
from .ray_serve import App
from .records import ExpertRecord, State


@dataclass(frozen=True, slots=True)
class Deploy:
    """Start the engine of a card."""

    card: Card
    generation: int


@dataclass(frozen=True, slots=True)
class Delete:
    """End an application that nobody uses any more."""

    app: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End an application that does not come up, and remember why, so that it is not tried again and again."""

    app: str
    expert: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Observe:
    """Write back how an expert is."""

    expert: str
    state: State
    reason: str = ""
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the record of an expert that is gone."""

    expert: str


Action = Deploy | Delete | GiveUp | Observe | Forget


@dataclass(frozen=True, slots=True)
class Probe:
    """The last answer of a URL."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter on a running engine: the name that answers for it there, and why not the one that is wanted."""

    model: str | None
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Actual:
    """What is known of what runs.

    `apps` is None while Ray was not asked yet or does not answer, then `trouble` says why: nothing is started, ended or
    forgotten on that ground. `failures` are engines given up, by expert and generation. `probes` are by URL.
    `adapters` are by the base URL of their engine and the expert, those on their way out included;
    what was not looked at yet is not among them. `unused` names experts and applications that have had no request for
    their time of grace.
    """

    apps: Mapping[str, App] | None = None
    trouble: str = ""
    failures: Mapping[tuple[str, int], str] = field(default_factory=dict)
    probes: Mapping[Address, Probe] = field(default_factory=dict)
    adapters: Mapping[tuple[str, str], Loaded] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


def plan(desired: Sequence[ExpertRecord], actual: Actual) -> list[Action]:
    """The actions that bring `actual` closer to `desired`. Idempotent: applied to their own outcome they do no harm.

    Applications of experts that no record names are ended only where the registry holds any record: an empty registry
    is more likely lost than meant.
    """
    actions: list[Action] = []
    seen: dict[str, Observe] = {}
    for record in sorted(desired, key=_order):
        apps = [app for app in (actual.apps or {}).values() if app.expert == record.name]
        for action in _for_record(record, actual, apps, seen):
            if isinstance(action, Observe):
                seen[action.expert] = action
            actions.append(action)
    known = {record.name for record in desired}
    if known:
        actions += _deletions([app for app in (actual.apps or {}).values() if app.expert not in known], actual)
    return actions


def _order(record: ExpertRecord) -> int:
    """Engines before the adapters on them, and these before the prompted experts that borrow either."""
    backend = record.card.backend
    return 2 if isinstance(backend, PromptedBackend) else int(isinstance(backend, AdapterBackend))


def _for_record(
    record: ExpertRecord, actual: Actual, apps: Sequence[App], seen: Mapping[str, Observe]
) -> Iterator[Action]:
    backend = record.card.backend
    if isinstance(backend, EngineBackend):
        if actual.apps is None:
            yield _unknown(record, actual)
        else:
            yield from _removal(record, actual, apps) if record.removed else _engine(record, actual, apps)
        return
    if record.removed:
        yield from _removal(record, actual, apps)
        return
    if isinstance(backend, RemoteBackend):
        yield _remote(record, backend, actual)
    elif isinstance(backend, AdapterBackend):
        yield _adapter(record, backend, actual, seen)
    else:
        yield _prompted(record, backend, seen)
    yield from _deletions(apps, actual)  # an engine that this name had before its card changed


def _removal(record: ExpertRecord, actual: Actual, apps: Sequence[App]) -> Iterator[Action]:
    yield Observe(record.name, State.DRAINING, "finishing the requests that run", None)
    yield from _deletions(apps, actual)
    held = any(expert == record.name for _, expert in actual.adapters)
    if not apps and not held and record.name in actual.unused:
        yield Forget(record.name)


def _deletions(apps: Sequence[App], actual: Actual) -> Iterator[Action]:
    for app in apps:
        if app.phase != "deleting" and (app.name in actual.unused or app.phase == "failed"):
            yield Delete(app.name)


def _remote(record: ExpertRecord, backend: RemoteBackend, actual: Actual) -> Observe:
    """Ready with the first of its URLs that answers; the base URLs are those that do.

    What was not asked yet, as after a start of the reconciler, is taken to be as it was.
    """
    probes = [(address.url, actual.probes.get(address)) for address in backend.addresses]
    good = [url for url, probe in probes if (url in record.base_urls if probe is None else probe.ok)]
    reasons = [f"asking {url}" if probe is None else probe.reason for url, probe in probes if url not in good]
    reason = "; ".join(reasons)
    if good:
        partly = f"{len(good)} of {len(probes)} URLs answer; {reason}" if reasons else ""
        return Observe(record.name, State.READY, partly, " ".join(good))
    waiting = any(probe is None for _, probe in probes)
    return Observe(record.name, State.STARTING if waiting else State.FAILED, reason, None)


def _unknown(record: ExpertRecord, actual: Actual) -> Observe:
    """Ray says nothing: leave what is known as it is, and say why nothing starts."""
    if record.removed:
        return Observe(record.name, State.DRAINING, actual.trouble, None)
    if record.base_url is not None or not actual.trouble:
        return Observe(record.name, record.state, record.reason, record.base_url)
    return Observe(record.name, State.STARTING, actual.trouble, None)


def _engine(record: ExpertRecord, actual: Actual, apps: Sequence[App]) -> Iterator[Action]:
    wanted = record.card.engine_fingerprint
    app = next((app for app in apps if app.fingerprint == wanted), None)
    others = [other for other in apps if other.fingerprint != wanted]
    before = next((other.base_url for other in others if other.phase in ("running", "restarting")), None)
    failure = actual.failures.get((record.name, record.generation))
    if app is not None and app.phase == "running":
        yield Observe(record.name, State.READY, "", app.base_url)
        yield from _deletions(others, actual)
    elif app is not None and _answered_before(app, record):
        # The edge goes on asking: another replica may answer, and what finds none waits for the new one.
        yield Observe(record.name, State.READY if app.replicas else State.STARTING, app.reason, app.base_url)
    elif app is not None and app.phase == "failed" and app.base_url == record.base_url:
        # It did answer: the card is right, and what failed is a replica that Ray started again. Another try, which is
        # given up if it fails without having answered.
        yield Delete(app.name)
        yield Observe(record.name, State.STARTING, "the engine is started anew", app.base_url)  # until it is gone
    elif app is not None and app.phase == "failed":
        reason = app.reason or "the engine did not start; see Ray's logs"
        yield GiveUp(app.name, record.name, record.generation, reason)
        yield _failed(record, reason, before)
    elif failure is not None:
        yield _failed(record, failure, before)
    else:
        if app is None:
            yield Deploy(record.card, record.generation)
        reason = app.reason if app is not None and app.reason else "the engine starts"
        yield Observe(record.name, State.STARTING, reason, before)


def _answered_before(app: App, record: ExpertRecord) -> bool:
    """A controller of Serve that was itself started again calls all its applications starting for some seconds."""
    return app.phase == "restarting" or (app.phase == "starting" and app.base_url == record.base_url)


def _failed(record: ExpertRecord, reason: str, before: str | None, what: str = "engine") -> Observe:
    kept = f"; the {what} before it still answers" if before else ""
    return Observe(record.name, State.FAILED, reason + kept, before)


def _adapter(record: ExpertRecord, backend: AdapterBackend, actual: Actual, seen: Mapping[str, Observe]) -> Observe:
    """Its base URL is its engine's, with the adapter's name there as the fragment."""
    waiting = _waits_for(record, backend.engine, seen)
    if waiting is not None:
        return waiting
    url = seen[backend.engine].base_url
    loaded = actual.adapters.get((url or "", record.name))
    if loaded is None:
        before, _, model = (record.base_url or "").partition("#")
        if model and before == url:
            return Observe(record.name, record.state, record.reason, record.base_url)
        return Observe(record.name, State.STARTING, "the adapter is checked", None)
    address = f"{url}#{loaded.model}" if loaded.model else None
    if loaded.failed:
        return _failed(record, loaded.reason, address, "adapter")
    return Observe(record.name, State.STARTING if loaded.reason else State.READY, loaded.reason, address)


def _prompted(record: ExpertRecord, backend: PromptedBackend, seen: Mapping[str, Observe]) -> Observe:
    waiting = _waits_for(record, backend.engine, seen)
    return waiting or Observe(record.name, State.READY, "", seen[backend.engine].base_url)


def _waits_for(record: ExpertRecord, name: str, seen: Mapping[str, Observe]) -> Observe | None:
    """Why an expert cannot answer because of the engine that it borrows, or None."""
    engine = seen.get(name)
    if engine is None:
        return Observe(record.name, State.FAILED, f"its engine {name!r} is not registered", None)
    if engine.base_url is not None and engine.state is not State.DRAINING:
        return None
    if engine.state is State.FAILED:
        return Observe(record.name, State.FAILED, f"its engine {name} failed: {engine.reason}", None)
    if engine.state is State.DRAINING:
        return Observe(record.name, State.FAILED, f"its engine {name} is being removed", None)
    return Observe(record.name, State.STARTING, f"waits for its engine {name}", None)


def wants_engines(desired: Sequence[ExpertRecord]) -> bool:
    """Whether anything here needs Ray to run."""
    return any(isinstance(record.card.backend, EngineBackend) and not record.removed for record in desired)
