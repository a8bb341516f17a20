"""Keeps the edge's snapshot of the registry new, by a thread; the last one stands when the registry errs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..experts.registry import Registry, RegistryError
from .settings import REFRESH
from .snapshot import Builder, RoutingModel, Snapshot, Sources

logger = logging.getLogger("collegium.edge")
_SHARE = 0.1  # of a core, at most, for reading a large registry that changes all the time
_LONGEST = 0.7  # seconds: edges see a change within one


class Watcher:
    """Holds the newest snapshot; looks for a newer one every REFRESH seconds, less often where reading takes long."""

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
        self._builder = Builder(sources)
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
        failing, pause = False, REFRESH
        while not self._stop.wait(pause):
            began = time.thread_time()
            try:
                if self._registry.version() != self._version:
                    self.snapshot = self._read()
                failing = False
            except (RegistryError, ValueError) as error:
                if not failing:
                    logger.warning("the registry cannot be read, the last snapshot stands: %s", error)
                failing = True
            pause = min(max(REFRESH, (time.thread_time() - began) / _SHARE), _LONGEST)

    def _read(self) -> Snapshot:
        # The version first: a write in between is read twice rather than missed.
        version = self._registry.version()
        self._switch_router(self._registry.active_router())
        snapshot = self._builder.build(
            self._registry.experts(), self._registry.skills(), self._registry.keys(), self._router
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
