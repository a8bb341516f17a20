"""Secrets stay secret: canaries sent down every path of an edge that logs everything, and then searched for."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from collegium.experts.registry import KeyScope, Registry
from echo_expert import EchoExpert
from serve_kit import Pool, card, specialist

PROMPT = f"canary-prompt-{secrets.token_hex(8)}"
KEY = f"sk-canary-{secrets.token_hex(8)}"
WRONG = f"sk-wrong-{secrets.token_hex(8)}"
EXPERT_KEY = f"sk-expert-{secrets.token_hex(8)}"
CANARIES = (PROMPT, KEY, WRONG, EXPERT_KEY)
FAULTS = (
    "status 400", "status 401", "status 403", "status 404", "status 429 1", "status 500", "status 503", "html", "empty",
    "redirect", "first", "gzip", "shape", "big", "context", "cut", "silent", "midway", "garbage", "nomark", "hang",
)  # fmt: skip


@dataclass
class Watched:
    """An edge process at debug level; everything it writes lies under `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    http: httpx2.Client

    def ask(self, path: str = "/v1/chat/completions", key: str = KEY, **body: object) -> httpx2.Response:
        said = {"model": "general", "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, **body}
        headers = {"authorization": f"Bearer {key}", "x-note": PROMPT}
        return self.http.post(f"http://127.0.0.1:{self.port}{path}", json=said, headers=headers)

    def raw(self, sent: bytes) -> None:
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        with connected as connection, suppress(ConnectionError):  # it may be refused while it is sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                continue

    def written(self) -> Iterator[tuple[str, bytes]]:
        for file in self.folder.rglob("*"):
            if file.is_file():
                yield str(file), file.read_bytes()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "metrics").mkdir()
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    with (
        EchoExpert(key=EXPERT_KEY) as echo,
        socket.create_server(("127.0.0.1", 0)) as listener,
        (tmp_path / "edge.log").open("wb") as log,
        httpx2.Client(trust_env=False, timeout=100) as http,
    ):
        backend = {"kind": "remote", "url": echo.url, "model": "echo", "api_key_env": "CANARY_EXPERT_KEY"}
        pool = Pool(registry)
        pool.add(card("general", echo.url, generalist=True, backend=backend), specialist("math", echo.url, "math"))
        registry.add_key("team", KEY, KeyScope())
        registry.close()
        process = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).with_name("edge_process.py")), str(listener.fileno()),
                f"sqlite:///{tmp_path / 'registry.db'}", "0.2", "debug",
            ],
            pass_fds=[listener.fileno()], stdout=log, stderr=log,
            env={
                **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "CANARY_EXPERT_KEY": EXPERT_KEY,
                "PYTHONASYNCIODEBUG": "1",
            },
        )  # fmt: skip
        port = listener.getsockname()[1]
        listener.close()
        yield Watched(tmp_path, port, process, http)
        process.kill()
        process.wait()


def _walk(edge: Watched) -> list[httpx2.Response]:
    """Every path on which something can go wrong."""
    answers = [edge.ask(), edge.ask(stream=True), edge.ask(model="auto")]
    for fault in FAULTS:
        said = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"!{fault}"}]
        answers += [edge.ask(messages=said), edge.ask(messages=said, stream=True)]
    answers += [
        edge.ask(key=WRONG),
        edge.ask(messages=[{"role": "wizard", "content": PROMPT}]),
        edge.ask(messages=[{"role": "user", "content": {"text": PROMPT}}]),
        edge.ask(api_key=PROMPT),
        edge.ask(stop=[PROMPT, 1]),
        edge.ask(model="auto", messages=[{"role": "user", "content": f"explode {PROMPT}"}]),
        edge.ask("/v1/route"),
        edge.ask("/v1/responses", input=PROMPT),
        edge.ask("/v1/messages", max_tokens=5),
        edge.ask("/v1/completions", prompt=PROMPT),
        edge.ask(f"/v1/{PROMPT}"),
        edge.http.get(f"http://127.0.0.1:{edge.port}/v1/models/{PROMPT}?q={PROMPT}"),
    ]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    kind = "Content-Type: application/json\r\n"
    body = json.dumps({"model": "general", "messages": [{"role": "user", "content": PROMPT}]})
    for sent in (
        f"{PROMPT}\r\n\r\n",
        f"{head}{kind}Content-Length: {len(body)}\r\n\r\n{body[:-20]}",
        f"{head}{kind}Content-Length: {len(body) + 1}\r\n\r\n{body},",
        f"{head}X: {PROMPT * 5000}\r\n\r\n",
        f"{head}Content-Type: {PROMPT}\r\nContent-Length: 2\r\n\r\n{{}}",
        f"{head}{kind}Transfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n",
    ):
        edge.raw(sent.encode())
    return answers


def test_canaries_are_found_nowhere(edge: Watched) -> None:
    edge.ask()
    answers = _walk(edge)
    for answer in answers:
        if answer.status_code >= 400:
            words = answer.text.replace(ascii(PROMPT), "")  # an unknown model is named to the client who named it
            assert not any(canary in words for canary in CANARIES), answer.text
        assert not any(secret in answer.text for secret in (KEY, WRONG, EXPERT_KEY))
        assert not any(canary in str(answer.headers) for canary in CANARIES)
    metrics = edge.http.get(f"http://127.0.0.1:{edge.port}/metrics").text
    status = Path(f"/proc/{edge.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", status)
    command = Path(f"/proc/{edge.process.pid}/cmdline").read_text()

    body = {"model": "general", "messages": [{"role": "user", "content": "!stall 12345"}], "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{edge.port}/v1/chat/completions"
    with edge.http.stream("POST", url, json=body, headers=headers) as cut:
        assert cut.status_code == 200
        lines = cut.iter_lines()
        next(lines)
        edge.process.send_signal(signal.SIGTERM)
        assert '"error"' in "".join(lines)
    edge.process.wait(30)

    found = [("metrics", metrics.encode()), ("command line", command.encode()), *edge.written()]
    assert any(name.endswith("edge.log") and b'"request"' in text for name, text in found)
    for name, text in found:
        assert not any(canary.encode() in text for canary in CANARIES), name
