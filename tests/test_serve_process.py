"""The edge as processes: two workers on one socket, draining, sudden deaths, slow clients, the log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from collegium.experts.registry import Registry
from echo_expert import EchoExpert
from serve_kit import Pool, card, specialist

TESTS = Path(__file__).parent


@dataclass
class Workers:
    """Edge processes that share one listening socket."""

    folder: Path
    echo: EchoExpert
    listener: socket.socket
    drain: str = "20"
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def command(self) -> list[str]:
        registry = f"sqlite:///{self.folder / 'registry.db'}"
        return [sys.executable, str(TESTS / "edge_process.py"), str(self.listener.fileno()), registry, self.drain]

    def environment(self) -> dict[str, str]:
        metrics = self.folder / "metrics"
        metrics.mkdir(exist_ok=True)
        return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics), "PYTHONPATH": str(TESTS)}

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "edge.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=self.environment(), pass_fds=[self.listener.fileno()]
            )
        self.running.append(process)
        return process

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", trust_env=False, timeout=30)

    def chat(self, text: str) -> httpx2.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, trust_env=False, timeout=30)

    def log(self) -> str:
        return (self.folder / "edge.log").read_text()


@contextmanager
def workers(folder: Path, drain: str = "20") -> Iterator[Workers]:
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    with EchoExpert() as echo, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the supervisor's, for the connections too
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        Pool(registry).add(card("general", echo.url, generalist=True), specialist("math", echo.url, "math"))
        started = Workers(folder, echo, listener, drain)
        try:
            yield started
        finally:
            for process in started.running:
                process.kill()
                process.wait()
            registry.close()


def test_two_workers_share_a_port_and_their_metrics(tmp_path: Path) -> None:
    with workers(tmp_path) as edge:
        first, second = edge.start(), edge.start()
        by_worker: set[Path] = set()
        sent = 0
        while len(by_worker) < 2:  # until both have answered
            assert edge.chat("canary prompt sum").status_code == 200
            sent += 1
            by_worker = set((tmp_path / "metrics").glob("histogram_*.db"))
        text = edge.get("/metrics").text
        counted = 'collegium_requests_total{end="completed",expert="math",route="chat/completions",status="200"}'
        assert f"{counted} {float(sent)}" in text

        first.kill()
        first.wait()
        assert [edge.chat("hello").status_code for _ in range(5)] == [200] * 5
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
        assert "canary" not in edge.log()
        assert edge.log().count('"route":"chat/completions"') == sent + 5


def streaming(edge: Workers, text: str, received: list[str], begun: threading.Event) -> threading.Thread:
    body = {"model": "general", "stream": True, "messages": [{"role": "user", "content": text}]}

    def read() -> None:
        url = f"{edge.url}/v1/chat/completions"
        with (
            suppress(httpx2.RemoteProtocolError, httpx2.ReadError),
            httpx2.stream("POST", url, json=body, trust_env=False, timeout=30) as answer,
        ):
            for line in answer.iter_lines():
                received.append(line)
                begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_sigterm_lets_streams_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    with workers(tmp_path) as edge:
        process = edge.start()
        assert edge.get("/readyz").status_code == 200
        received: list[str] = []
        begun = threading.Event()
        thread = streaming(edge, "!slow answer", received, begun)
        assert begun.wait(60)
        process.send_signal(signal.SIGTERM)
        refused = edge.chat("hello")
        while refused.status_code == 200:  # the signal is on its way
            refused = edge.chat("hello")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["x-should-retry"] == "true" and refused.headers["connection"] == "close"
        thread.join(60)
        assert process.wait(60) == 0
        assert [line for line in received if line][-1] == "data: [DONE]"


def test_a_stream_that_outlives_the_drain_ends_with_an_error_event(tmp_path: Path) -> None:
    with workers(tmp_path, drain="0.3") as edge:
        process = edge.start()
        received: list[str] = []
        begun = threading.Event()
        thread = streaming(edge, "!stall answer", received, begun)
        assert begun.wait(60)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert process.wait(60) == 0
        assert '"code":"draining"' in [line for line in received if line][-1]
        assert edge.echo.left.wait(60)


def bound(listener: socket.socket, address: tuple[str, int]) -> bool:
    try:
        listener.bind(address)
    except OSError:
        return False
    return True


def test_an_orphan_frees_the_port_and_answers_to_the_end(tmp_path: Path) -> None:
    with workers(tmp_path, drain="0.1") as edge:
        # With threads, as the supervisor: the kernel tells a child of the end of each.
        script = "import subprocess, sys, threading, time; p = subprocess.Popen(sys.argv[2:], close_fds=False); " + (
            "[threading.Thread(target=time.sleep, args=(600,)).start() for _ in range(40)]; "
            "print(p.pid, flush=True); time.sleep(600)"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", script, "-", *edge.command()],
            stdout=subprocess.PIPE, env=edge.environment(), pass_fds=[edge.listener.fileno()],
        )  # fmt: skip
        edge.running.append(parent)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        address = edge.listener.getsockname()
        assert edge.get("/readyz").status_code == 200
        received: list[str] = []
        begun = threading.Event()
        thread = streaming(edge, "!stall answer", received, begun)
        assert begun.wait(60)
        parent.kill()
        edge.listener.close()
        with socket.socket() as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            while not bound(successor, address):
                time.sleep(0.01)
            thread.join(0.5)
            assert thread.is_alive()  # the stream goes on
        os.kill(child, signal.SIGTERM)  # the second one: at once
        thread.join(60)
        assert not thread.is_alive()
        while Path(f"/proc/{child}").exists():
            time.sleep(0.02)


def test_a_request_head_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    with workers(tmp_path) as edge:
        edge.start()
        assert edge.get("/healthz").status_code == 200
        with socket.create_connection(edge.listener.getsockname(), timeout=20) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            assert slow.recv(1000).startswith(b"HTTP/1.1 400")
            assert slow.recv(1000) == b""


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--cost-weight", "-1"], "cost_weight is -1"),
        (["--router", "/nowhere"], "nowhere"),
        (["--registry", "nonsense"], "registry URL"),
    ],
)
def test_a_start_that_cannot_be_says_why(tmp_path: Path, extra: list[str], says: str) -> None:
    command = [sys.executable, "-m", "collegium.serve.edge", "--state", str(tmp_path), "--port", "0", *extra]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert says in ended.stderr and "Traceback" not in ended.stderr


def test_the_edge_never_imports_ray_or_torch(tmp_path: Path) -> None:
    heavy = "{'ray', 'vllm', 'torch', 'sentence_transformers'}"
    code = f"import sys, collegium.serve.edge, collegium.serve.admin; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"
