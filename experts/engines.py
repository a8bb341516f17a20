"""The reconciler's hand on Ray: one thread that joins, asks, deploys and deletes; nothing else waits for Ray."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import httpx2
import psutil

from .adapter_staging import staging_folder
from .backends import EngineBackend
from .card import Card, CardError
from .plan import GIB
from .ray_cluster import RayCluster, RayError
from .ray_serve import App, RayServe, preload
from .reconcile import Delete, Deploy, GiveUp
from .state import StateFolder

Work = Deploy | Delete | GiveUp
_RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True, slots=True)
class EngineView:
    """What the thread last saw. `apps` is None while unknown; `failed` are engines that could not be started at all."""

    apps: Mapping[str, App] | None = None
    trouble: str = ""
    failed: Mapping[tuple[str, int], str] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()


class Engines:
    """Runs Ray for one state folder, or joins `ray_address`. All methods return at once."""

    def __init__(self, state: StateFolder, ray_address: str | None = None) -> None:
        self._cluster = None if ray_address else RayCluster(state)
        self._address = ray_address
        self._internal_key = state.internal_key()
        self._staged = "" if ray_address else str(staging_folder(state))
        self._serve: RayServe | None = None
        self._view = EngineView()
        self._work: dict[str, Work] = {}
        self._watched: frozenset[str] = frozenset()
        self._wanted = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, patience: float = 10.0) -> None:
        """Let go of Ray and leave what runs on it; work that hangs is left behind after `patience` seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(patience)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def view(self) -> EngineView:
        return self._view

    def want(self, wanted: bool, watched: frozenset[str]) -> None:
        """Whether there is any engine to run, and which applications to look at for requests that still run."""
        if wanted and not self._wanted:
            self._wake.set()
        self._wanted, self._watched = wanted, watched

    def submit(self, work: Work) -> None:
        """Queue work; the same work twice is once."""
        key = f"{work.card.name}/{work.generation}" if isinstance(work, Deploy) else work.app
        with self._lock:
            self._work.setdefault(key, work)
        self._wake.set()

    def _run(self) -> None:
        pause = 1.0
        while not self._closing.is_set():
            try:
                self._step()
                pause = 1.0
            except RayError as error:
                _log(f"{error}; next try in {pause:.0f} s")
                self._serve = None
                self._view = replace(self._view, apps=None, trouble=str(error), idle=frozenset())
                self._closing.wait(pause)
                pause = min(pause * 2, 60.0)
            self._wake.wait(2.0 if self._is_steady() else 0.5)
            self._wake.clear()

    def _is_steady(self) -> bool:
        if self._serve is None:
            return not self._wanted
        apps = self._view.apps or {}
        return bool(apps) and not self._watched and all(app.phase == "running" for app in apps.values())

    def _step(self) -> None:
        if self._serve is None and not self._join():
            self._view = replace(self._view, apps={}, trouble="", idle=frozenset())
            return
        for key, work in list(self._work.items()):
            self._do(work)
            self._look()  # before the work is forgotten, so that a plan in between does not ask for it again
            with self._lock:
                self._work.pop(key, None)
        self._look()

    def _join(self) -> bool:
        """Connect, starting the local Ray where an engine is wanted. False: nothing runs and nothing shall."""
        address, host, port = self._address, None, None
        if self._cluster is not None:
            if not self._wanted and not self._cluster.running():
                return False
            self._view = replace(self._view, trouble="Ray starts")
            if not self._cluster.running():
                threading.Thread(target=preload, name="preload", daemon=True).start()
            _log("Ray started" if self._cluster.ensure() else "adopted the Ray that runs")
            address, host, port = self._cluster.address, "127.0.0.1", self._cluster.http_port
        serve = RayServe(address or "auto", self._internal_key, host, port, self._staged)
        serve.connect()
        self._serve = serve
        _log(f"joined Ray at {address}")
        return True

    def _look(self) -> None:
        if self._serve is None:
            return
        apps = self._serve.status()
        idle = frozenset(name for name in self._watched if name in apps and is_idle(apps[name].base_url))
        self._view = replace(self._view, apps=apps, trouble="", idle=idle)

    def _do(self, work: Work) -> None:
        if self._serve is None:
            return
        if not isinstance(work, Deploy):
            _log(f"deletes {work.app}")
            self._serve.delete(work.app)
            return
        _log(f"starts the engine of {work.card.name}")
        try:
            check_free_memory(work.card, local=self._cluster is not None)
            self._serve.deploy(work.card)
        except (CardError, RayError) as error:
            key = (work.card.name, work.generation)
            self._view = replace(self._view, failed={**self._view.failed, key: str(error)})
            _log(f"{work.card.name}: {error}")


def check_free_memory(card: Card, *, local: bool) -> None:
    """Refuse an engine that would drive this machine out of memory. Devices are Ray's to hand out.

    Raises:
        CardError: too little is free now.
    """
    backend = card.backend
    if not local or not isinstance(backend, EngineBackend) or not backend.on_cpu:
        return
    free = psutil.virtual_memory().available / GIB
    if backend.memory_gb > free:
        raise CardError(f"its engine needs {backend.memory_gb:g} GB of memory, {free:.1f} GB are free now")


def is_idle(base_url: str) -> bool:
    """Whether an engine says that no request runs or waits. One that does not answer has none."""
    try:
        answer = httpx2.get(base_url.removesuffix("/v1") + "/metrics", timeout=2.0, trust_env=False)
    except httpx2.HTTPError:
        return True
    if answer.status_code != 200:  # HAProxy's, where no replica is left
        return True
    counts = [line.rsplit(" ", 1)[1] for line in answer.text.splitlines() if line.startswith(_RUNNING)]
    return bool(counts) and not any(float(count) for count in counts)


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} engines: {text}", file=sys.stderr, flush=True)
