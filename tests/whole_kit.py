"""`collegium serve` as a process of its own, for the tests that need the whole of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
from collegium.experts.processes import die_with_parent

START = 90.0  # seconds: the encoder takes 10 of them on a busy box


@dataclass
class Serving:
    """A `collegium serve` process and how to reach it."""

    folder: Path
    port: int
    admin_port: int
    environment: dict[str, str]
    pool: str
    process: subprocess.Popen[bytes] = field(init=False)
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(trust_env=False, timeout=120))

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/admin"

    @property
    def admin_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {(self.folder / 'admin.key').read_text()}"}

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(),
            env=self.environment,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, parent=os.getpid()),
        )

    def command(self) -> list[str]:
        ports = ["--port", str(self.port), "--admin-port", str(self.admin_port)]
        return [
            sys.executable,
            "-m",
            "collegium.cli.main",
            "serve",
            self.pool,
            "--state",
            str(self.folder),
            *ports,
        ]

    def wait_ready(self, seconds: float = START) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "collegium serve ended early"
            try:
                if self.http.get(f"{self.base}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise TimeoutError("the endpoint was not ready")

    def stop(self, seconds: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def chat(self, text: str, model: str = "auto") -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16}
        return self.http.post(f"{self.base}/v1/chat/completions", json=body)

    def register(self, card: dict[str, object]) -> httpx2.Response:
        return self.http.post(f"{self.admin}/experts", json=card, headers=self.admin_headers)

    def models(self) -> set[str]:
        return {row["id"] for row in self.http.get(f"{self.base}/v1/models").json()["data"]}


def until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
