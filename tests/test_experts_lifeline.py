"""A replica ends with its engine's core, and not before."""

from __future__ import annotations

import subprocess
import sys

REPLICA = """
import sys
from types import SimpleNamespace
from collegium.experts.lifeline import Lifeline
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

app = Starlette(middleware=[Middleware(Lifeline)])
core = app.state.engine_client = SimpleNamespace(errored=False)
client = TestClient(app)
assert client.get("/").status_code == 404
print("answers", flush=True)
for line in sys.stdin:
    core.errored = line == "dead\\n"
    print(client.get("/").status_code, flush=True)
"""


def test_a_replica_ends_when_its_core_is_dead() -> None:
    command = [sys.executable, "-c", REPLICA]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdin and replica.stdout
        assert replica.stdout.readline() == "answers\n"
        for line, status in (("alive\n", "404\n"), ("dead\n", "503\n")):
            assert replica.poll() is None
            replica.stdin.write(line)
            replica.stdin.flush()
            assert replica.stdout.readline() == status
        assert replica.wait(60) == 1
