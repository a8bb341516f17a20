"""An edge worker for long tests, with the tests' tiny router: `edge_process.py DESCRIPTOR REGISTRY SETTINGS`.

SETTINGS is a JSON object of EdgeSettings' fields. `GET /probe` tells what the process holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from collegium.experts.processes import die_with_parent, raise_file_limit
from collegium.experts.registry import Registry
from collegium.serve.edge import Server
from collegium.serve.gate import Edge
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Sources
from collegium.serve.watcher import Watcher
from leaks import log_everything
from serve_kit import KeywordRouter
from starlette.types import Receive, Scope, Send


class Probed(Edge):
    """Tells its ledger and how many tasks its loop has, besides what an edge does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/probe":
            return await super().__call__(scope, receive, send)
        ledger = self.ledger
        held = {
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            "accepted": ledger.accepted,
            "in_flight": ledger.in_flight,
            "balanced": ledger.balanced,
            "ended": {end.value: count for end, count in ledger.ended.items()},
            "attempts": ledger.attempts,
        }
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": json.dumps(held).encode()})
        return None


def main(descriptor: int, registry: str, given: dict[str, object]) -> None:
    die_with_parent(signal.SIGHUP)
    raise_file_limit()
    log_everything()
    counters = given.pop("counters", None)
    settings = EdgeSettings(counters=Path(str(counters)) if counters else None, **given)  # type: ignore[arg-type]
    app = Probed(settings, Watcher(Registry(registry), Sources("internal", {}), KeywordRouter()))
    Server(app, settings, socket.socket(fileno=descriptor)).run(sockets=[socket.socket(fileno=os.dup(descriptor))])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
