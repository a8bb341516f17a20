"""The reconciler: a process that makes what runs match the registry, and writes back how each expert is.

`python -m collegium.experts.reconciler --state DIR [--registry URL] [--ray-address ADDRESS]`. SIGTERM ends it and
leaves the engines; the next one adopts them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .engines import Engines, EngineView
from .lora import Adapters
from .networks import Networks
from .probes import Probes
from .processes import die_with_parent, tell_ready
from .ray_cluster import RayCluster
from .reconcile import Action, Actual, Delete, Deploy, Forget, GiveUp, Observe, plan, wants_engines
from .records import ExpertRecord, RegistryError
from .registry import Registry
from .state import StateFolder

TICK = 0.25  # seconds
GRACE = 1.0  # seconds in which every edge has seen that an expert goes
LONGEST_DRAIN = 120.0  # seconds a running request may hold up the end of its engine


class Reconciler:
    """Desired state from `registry`, actual state from `engines`, `probes` and `adapters`."""

    def __init__(self, registry: Registry, engines: Engines, probes: Probes, adapters: Adapters) -> None:
        self._registry, self._engines, self._probes, self._adapters = registry, engines, probes, adapters
        self._version = -1
        self._records: list[ExpertRecord] = []
        self._given_up: dict[tuple[str, int], str] = {}
        self._unwanted: dict[str, float] = {}
        self._trouble = ""

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set. A registry that errs is waited for; nothing is ended because of it.

        Raises:
            RuntimeError: the engines' thread ended.
        """
        while not stop.is_set():
            stop_on_signals(stop)  # again and again: joining Ray puts handlers of its own in their place
            try:
                self.tick()
                self._say("")
                tell_ready()
            except RegistryError as error:
                self._say(str(error))
            if not self._engines.alive:
                raise RuntimeError("the engines' thread ended; its error is above")
            stop.wait(TICK)

    def tick(self) -> None:
        """Read, plan, act once."""
        version = self._registry.version()
        if version != self._version:
            self._records = self._registry.experts()
            self._version = version
        view = self._engines.view()
        actual = self._actual(view)
        actions = plan(self._records, actual)
        self._engines.want(wants_engines(self._records), frozenset(self._unwanted))
        written = {Observe(r.name, r.state, r.reason, r.base_url) for r in self._records}
        for action in actions:
            if isinstance(action, Observe) and action in written:
                continue  # or each tick would ask the registry once for every expert
            self._act(action)

    def _actual(self, view: EngineView) -> Actual:
        return Actual(
            apps=view.apps,
            trouble=view.trouble,
            failures={**view.failed, **self._given_up},
            probes=self._probes.update(self._records),
            adapters=self._adapters.update(self._records, view.apps or {}),
            unused=self._unused(view, time.monotonic()),
        )

    def _unused(self, view: EngineView, now: float) -> frozenset[str]:
        """Experts and applications on their way out whose grace is over."""
        apps = view.apps or {}
        wanted = {(r.name, r.card.engine_fingerprint) for r in self._records if not r.removed}
        leaving = {record.name for record in self._records if record.removed}
        leaving |= {app.name for app in apps.values() if (app.expert, app.fingerprint) not in wanted}
        self._unwanted = {name: self._unwanted.get(name, now) for name in leaving}
        over = set()
        for name, since in self._unwanted.items():
            busy = name in apps and name not in view.idle
            if now - since > (LONGEST_DRAIN if busy else GRACE):
                over.add(name)
        return frozenset(over)

    def _act(self, action: Action) -> None:
        match action:
            case Observe():
                self._registry.observe(action.expert, action.state, action.reason, action.base_url)
            case Forget():
                self._registry.forget(action.expert)
            case GiveUp():
                self._given_up[action.expert, action.generation] = action.reason
                self._engines.submit(action)
            case Deploy() | Delete():
                self._engines.submit(action)

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            print(trouble or "the registry answers again", file=sys.stderr, flush=True)
        self._trouble = trouble


def stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.experts.reconciler", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state folder")
    parser.add_argument("--registry", help="SQLAlchemy URL; by default a SQLite file in the state folder")
    parser.add_argument("--ray-address", help="join this Ray cluster instead of starting one")
    parser.add_argument("--parent", type=int, help="id of the process that this one ends with")
    options = parser.parse_args(arguments)
    # Killed at once: the next supervisor's reconciler must not find another at work, and any may be killed anywhere.
    die_with_parent(signal.SIGKILL, options.parent)
    stop = threading.Event()
    stop_on_signals(stop)
    state = StateFolder(options.state)
    if options.ray_address is None:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(RayCluster(state).environment())
    try:
        networks = Networks.from_environment(os.environ)
        registry = Registry(options.registry or state.registry_url)
    except (RegistryError, ValueError) as error:
        print(f"reconciler: {error}", file=sys.stderr)
        return 1
    engines, probes = Engines(state, options.ray_address), Probes(networks=networks)
    adapters = Adapters(state, local=options.ray_address is None)
    engines.start()
    try:
        Reconciler(registry, engines, probes, adapters).run(stop)
    finally:
        engines.close()
        probes.close()
        adapters.close()
        registry.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
