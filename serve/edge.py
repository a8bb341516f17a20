"""The edge process: `python -m collegium.serve.edge --state DIR`. It never imports Ray."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ..experts.networks import Networks
from ..experts.processes import die_with_parent, forbid_core_dumps, raise_file_limit, tell_ready
from ..experts.registry import Registry, RegistryError
from ..experts.state import StateFolder
from ..experts.weights import locate
from ..router.artefact import STARTER, load_router
from ..router.decision import Policy
from . import counters
from .gate import Edge
from .log import configure
from .protocol import bounded_protocol
from .settings import EdgeSettings
from .snapshot import RoutingModel, Sources
from .watcher import Watcher

logger = logging.getLogger("collegium.edge")

# Longer than clients keep an idle connection (httpx, under OpenAI's client: 5 s): the side that sends next must be the
# one that closes, or its request meets a closed door.
_KEEP_ALIVE = 75


def create_app(
    settings: EdgeSettings,
    registry: Registry,
    router: RoutingModel,
    sources: Sources,
    load: Callable[[str], RoutingModel] | None = None,
) -> Edge:
    """The public endpoint as an ASGI application with a lifespan.

    `router` serves until another is promoted in the registry, whose path `load` then opens; without `load` it stays.

    Raises:
        RegistryError: the registry cannot be read.
    """
    return Edge(settings, Watcher(registry, sources, router, load))


class Server(uvicorn.Server):
    """uvicorn that drains on the first SIGTERM or SIGINT, ends at once on the second, and exits with code 0.

    SIGHUP, sent by the kernel, tells that the supervisor is gone: any number of them drains, too.
    """

    def __init__(self, app: Edge, settings: EdgeSettings, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(settings),
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._app = app
        self._patience = settings.drain
        self._last_patience = settings.total
        self._listener = listener
        self._parent = os.getppid()
        self._drain: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._told_of_an_end)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        tell_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # then uvicorn leaves the lifespan's end out
            await self._app.hang_up()

    def _told_to_end(self) -> None:
        if self._drain is not None:
            self.should_exit = self.force_exit = True
            return
        self._begin_to_drain(self._patience)

    def _told_of_an_end(self) -> None:
        """Of the supervisor, or only of one of its threads. Nobody waits for this process then: all answers may end."""
        if os.getppid() == self._parent:
            return
        # Nobody is left to own the port; a new supervisor must get it while running answers finish.
        for server in self.servers:
            server.close()
        self._listener.close()
        if self._drain is None:
            self._begin_to_drain(self._last_patience)

    def _begin_to_drain(self, patience: float) -> None:
        self._drain = asyncio.create_task(self._app.drain(patience))
        self._drain.add_done_callback(lambda _: setattr(self, "should_exit", True))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; returns the exit code."""
    options = _options().parse_args(arguments)
    die_with_parent(signal.SIGHUP, options.parent)
    forbid_core_dumps()
    files = raise_file_limit()
    configure()
    try:
        state = StateFolder(Path(options.state))
        settings = EdgeSettings(
            policy=Policy(options.cost_weight, options.switch_margin),
            first_byte=options.first_byte,
            between_events=options.between_events,
            total=options.total,
            classifier_budget=options.classifier_budget,
            max_connections=min(EdgeSettings().max_connections, files // 2),  # each may need one to an expert, too
            workers=options.workers,
            worker=options.worker,
            counters=state.path / counters.FILE,
            networks=Networks.from_environment(os.environ),
            vsr_headers=options.vsr_headers,
            metrics_folder=os.environ.get("PROMETHEUS_MULTIPROC_DIR"),
        )
        registry = Registry(options.registry or state.registry_url)
        router, load = _router(registry, options.router)
        app = create_app(settings, registry, router, Sources(state.internal_key(), os.environ), load)
        listener = socket.socket(fileno=options.fd) if options.fd is not None else listen(options.host, options.port)
    except (OSError, RegistryError, RuntimeError, ValueError) as error:
        logger.error("the edge cannot start: %s", error)
        return 2
    logger.info("the edge listens on %s", listener.getsockname())
    _spare_collector()
    Server(app, settings, listener).run(sockets=[listener])
    registry.close()
    return 0


def _spare_collector() -> None:
    """Libraries and the router stay: to walk through them again would stop the loop for tens of milliseconds."""
    gc.collect()
    gc.freeze()


def _router(registry: Registry, pinned: str | None) -> tuple[RoutingModel, Callable[[str], RoutingModel] | None]:
    """The router to begin with, and how to open a promoted one; a router named on the command line stays."""

    def load(path: str) -> RoutingModel:
        return load_router(Path(path), locate)

    if pinned is not None:
        return load(pinned), None
    return load(registry.active_router() or str(STARTER)), load


def _options() -> argparse.ArgumentParser:
    standard = EdgeSettings()
    parser = argparse.ArgumentParser(prog="python -m collegium.serve.edge", description=__doc__)
    parser.add_argument("--state", required=True, help="state folder of collegium serve")
    parser.add_argument("--registry", help="SQLAlchemy URL; default: the state folder's SQLite")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="inherited listening socket, instead of host and port")
    parser.add_argument("--workers", type=int, default=1, help="edge processes on this machine")
    parser.add_argument("--worker", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--parent", type=int, help="id of the process that this one ends with")
    parser.add_argument("--router", help="router folder; default: the promoted one, else the starter")
    parser.add_argument("--cost-weight", type=float, default=0.0)
    parser.add_argument("--switch-margin", type=float, default=0.0)
    parser.add_argument("--vsr-headers", action="store_true", help="add vLLM Semantic Router's headers")
    parser.add_argument("--classifier-budget", type=float, default=standard.classifier_budget, help="seconds")
    parser.add_argument("--first-byte", type=float, default=standard.first_byte, help="seconds")
    parser.add_argument("--between-events", type=float, default=standard.between_events, help="seconds")
    parser.add_argument("--total", type=float, default=standard.total, help="seconds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
