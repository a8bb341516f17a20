"""The supervisor: one process that starts the admin API, the reconciler and the edge, and ends them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn

from ..experts.backends import RemoteBackend
from ..experts.card import Card
from ..experts.networks import VARIABLE, Networks
from ..experts.preflight import check_card, check_pool
from ..experts.processes import forbid_core_dumps
from ..experts.ray_cluster import RayCluster
from ..experts.registry import ExpertRecord, Registry, RegistryError, State
from ..experts.state import StateFolder
from . import counters
from .admin import create_admin_app
from .children import Child
from .lock import ServeLock

DRAIN = 35.0  # seconds an edge may take to finish its streams; the edge itself gives up after 30


class StartError(RuntimeError):
    """Serving cannot start; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `collegium serve` was asked for. `workers` are edge processes that share one listening socket.

    `networks` bounds where remote experts may be.
    """

    state: StateFolder
    registry_url: str
    pool: Sequence[Card] = ()
    apply_pool: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int = 8001
    workers: int = 1
    router: Path | None = None
    cost_weight: float = 0.0
    switch_margin: float = 0.0
    vsr_headers: bool = False
    ray_address: str | None = None
    networks: Networks = field(default_factory=Networks)

    @property
    def endpoint(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"


async def serve(settings: ServeSettings, report: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then drain and end everything; a second signal ends at once.

    Raises:
        StartError: a port is taken, the pool does not fit, or the registry cannot be opened.
        AlreadyServingError: another supervisor holds the state folder.
    """
    forbid_core_dumps()
    with (
        ServeLock(settings.state.path) as lock,
        _listen(settings.host, settings.port, "--port") as public,
        _listen("127.0.0.1", settings.admin_port, "--admin-port") as admin,
    ):
        registry = _open(settings)
        try:
            _seed(registry, settings, report)
            lock.tell({"pid": os.getpid(), "endpoint": settings.endpoint, "admin_port": settings.admin_port})
            await _Supervisor(settings, registry, public, admin, report).run()
        finally:
            registry.close()


class _Supervisor:
    def __init__(
        self,
        settings: ServeSettings,
        registry: Registry,
        public: socket.socket,
        admin: socket.socket,
        report: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._admin_socket = admin
        self._report = report
        state = settings.state
        common = ["--state", str(state.path), "--registry", settings.registry_url]
        joined = ["--ray-address", settings.ray_address] if settings.ray_address else []
        self._reconciler = self._child("reconciler", "collegium.experts.reconciler", [*common, *joined])
        edge = [*common, "--fd", str(public.fileno()), "--cost-weight", str(settings.cost_weight)]
        edge += ["--switch-margin", str(settings.switch_margin)]
        edge += ["--workers", str(settings.workers)]
        if settings.vsr_headers:
            edge.append("--vsr-headers")
        if settings.router:
            edge += ["--router", str(settings.router)]
        self._edges = [
            self._child(
                f"edge-{number + 1}", "collegium.serve.edge", [*edge, "--worker", str(number)], [public.fileno()]
            )
            for number in range(settings.workers)
        ]
        self._told: dict[str, tuple[State, str]] = {}
        # What workers of an earlier start held, of which there may have been more.
        (state.path / counters.FILE).unlink(missing_ok=True)

    def _child(self, name: str, module: str, arguments: Sequence[str], inherited: Sequence[int] = ()) -> Child:
        state = self._settings.state
        environment = {**os.environ, VARIABLE: self._settings.networks.listed}
        if name.startswith("edge"):
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_folder(state))
        command = [sys.executable, "-m", module, "--parent", str(os.getpid()), *arguments]
        return Child(name, command, state.logs / f"{name}.log", environment, self._report, inherited)

    async def run(self) -> None:
        stop = asyncio.Event()
        hurry = asyncio.Event()
        _on_signals(stop, hurry)
        admin = self._admin_server()
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(admin.serve(sockets=[self._admin_socket])),
            asyncio.create_task(self._reconciler.run()),
            *(asyncio.create_task(edge.run()) for edge in self._edges),
            asyncio.create_task(self._tell_states()),
        ]
        stopped = asyncio.create_task(_set(stop))
        self._report(f"endpoint {self._settings.endpoint}")
        self._report(
            f"admin API http://127.0.0.1:{self._settings.admin_port}/admin, key in "
            f"{self._settings.state.path / 'admin.key'}"
        )
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self._report("stopping: no new requests, running answers finish")
        await self._stop_children(hurry)
        admin.should_exit = True
        tasks[-1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await self._stop_engines()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        self._report("stopped")

    async def _stop_children(self, hurry: asyncio.Event) -> None:
        children = (*self._edges, self._reconciler)
        patient = asyncio.create_task(_stop_all(children, DRAIN))
        hurried = asyncio.create_task(_set(hurry))
        await asyncio.wait([patient, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not patient.done():
            patient.cancel()
            with suppress(asyncio.CancelledError):
                await patient
            await _stop_all(children, 0.1)
        hurried.cancel()

    async def _stop_engines(self) -> None:
        if self._settings.ray_address:
            return
        await asyncio.to_thread(RayCluster(self._settings.state).stop)
        await asyncio.to_thread(self._forget_engines)

    def _forget_engines(self) -> None:
        """Without this the next start would send requests to engines that are gone, until they are looked at."""
        for record in self._registry.experts():
            if not isinstance(record.card.backend, RemoteBackend) and not record.removed:
                self._registry.observe(record.name, State.REGISTERED)

    def _admin_server(self) -> uvicorn.Server:
        key = self._settings.state.admin_key()
        settings = self._settings
        check = partial(check_card, joined=settings.ray_address is not None, networks=settings.networks)
        config = uvicorn.Config(
            create_admin_app(self._registry, key, check), log_config=None, access_log=False, lifespan="off"
        )
        return _QuietServer(config)

    async def _tell_states(self) -> None:
        """Print every change of an expert's state, once."""
        while True:
            with suppress(RegistryError):
                records = await asyncio.to_thread(self._registry.experts)
                self._tell(records)
            await asyncio.sleep(0.5)

    def _tell(self, records: Sequence[ExpertRecord]) -> None:
        for record in records:
            now = (record.state, record.reason)
            if self._told.get(record.name) != now:
                self._report(
                    f"expert {record.name}: {record.state.value}" + (f" ({record.reason})" * bool(record.reason))
                )
        for name in self._told.keys() - {record.name for record in records}:
            self._report(f"expert {name}: removed")
        self._told = {record.name: (record.state, record.reason) for record in records}


async def _stop_all(children: Iterable[Child], patience: float) -> None:
    await asyncio.gather(*(child.stop(patience) for child in children))


async def _set(event: asyncio.Event) -> None:
    await event.wait()


class _QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the supervisor decides when to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def received() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received)


@contextmanager
def _listen(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """A listening socket that edges inherit: while one restarts, connections wait instead of being refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(2048)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another with {option}"
            ) from error
        yield listener
    finally:
        listener.close()


def _open(settings: ServeSettings) -> Registry:
    try:
        return Registry(settings.registry_url)
    except RegistryError as error:
        raise StartError(str(error)) from error


def _seed(registry: Registry, settings: ServeSettings, report: Callable[[str], None]) -> None:
    """Put the pool into an empty registry; a registry that holds experts stands, unless the pool is applied to it."""
    records = registry.experts()
    if records and settings.pool and not settings.apply_pool:
        present = {record.name: record.card for record in records}
        changed = [card.name for card in settings.pool if present.get(card.name) != card]
        if changed:
            report(
                f"the registry stands; it differs from the pool in {', '.join(changed)} (--apply-pool takes the pool's)"
            )
        return
    if not records and not settings.pool:
        raise StartError("the registry is empty; name a pool, e.g.: collegium serve demo")
    check_pool(settings.pool, records, joined=settings.ray_address is not None)
    registry.seed(settings.pool)


def _metrics_folder(state: StateFolder) -> Path:
    folder = state.path / "metrics"
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.glob("*.db"):
        old.unlink()
    return folder
