"""`collegium serve` as a process, on a pool of remote URLs, with Ray hidden: it must work without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml
from collegium.experts.ray_cluster import free_ports
from echo_expert import EchoExpert
from whole_kit import Serving, until

EQUATION = "Solve the equation 3x + 5 = 20 for x."


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoExpert]:
    with EchoExpert() as expert:
        yield expert


@pytest.fixture(scope="module")
def serving(echo: EchoExpert, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with _serving(echo, tmp_path_factory.mktemp("serve")) as running:
        yield running


@contextmanager
def _serving(echo: EchoExpert, folder: Path) -> Iterator[Serving]:
    hidden = folder / "hidden"
    for package in ("ray", "vllm"):
        (hidden / package).mkdir(parents=True)
        (hidden / package / "__init__.py").write_text("raise ImportError('this package is hidden in this test')")
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump([_card("general", echo.url, generalist=True)]))
    port, admin_port = free_ports(("public", "admin")).values()
    environment = {**os.environ, "PYTHONPATH": str(hidden), "COLLEGIUM_ALLOW_NETWORKS": "127.0.0.1"}
    running = Serving(folder / "state", port, admin_port, environment, str(pool))
    running.start()
    try:
        running.wait_ready()
        yield running
        assert running.stop() == 0
    finally:
        if running.process.poll() is None:
            running.process.kill()


def _card(name: str, url: str, **more: object) -> dict[str, object]:
    return {"name": name, "backend": {"kind": "remote", "url": url, "model": "echo"}, **more}


def test_answers_without_ray(serving: Serving) -> None:
    answer = serving.chat("hello there")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello there"
    assert answer.headers["x-collegium-expert"] == answer.json()["model"] == "general"
    assert answer.headers["x-collegium-router"].startswith("starter")


def test_each_child_knows_whose_it_is(serving: Serving) -> None:
    """One that starts while its supervisor dies would otherwise live on."""
    supervisor = serving.process.pid
    children = [child.cmdline() for child in psutil.Process(supervisor).children()]
    parts = {part for command in children for part in command if part.startswith("collegium.")}
    assert parts == {"collegium.serve.edge", "collegium.experts.reconciler"}
    assert {command[command.index("--parent") + 1] for command in children} == {str(supervisor)}


def test_an_expert_added_live_disturbs_nobody(serving: Serving, echo: EchoExpert) -> None:
    failures: list[str] = []
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            answer = serving.chat("hello")
            if answer.status_code != 200:
                failures.append(answer.text)

    asking = threading.Thread(target=loop)
    asking.start()
    try:
        mathematics = _card("math", echo.url, domains={"math": 0.9}, admitted=["math"])
        assert (
            serving.http.post(f"{serving.admin}/experts", json=mathematics, headers=serving.admin_headers).status_code
            == 201
        )
        until(lambda: "math" in serving.models())
        # Again where a crowded machine let the classifier run out of its time, which the generalist answers.
        until(lambda: serving.chat(EQUATION).headers["x-collegium-expert"] == "math")
        assert serving.http.delete(f"{serving.admin}/experts/math", headers=serving.admin_headers).status_code < 300
        until(lambda: "math" not in serving.models())
        assert serving.chat(EQUATION).headers["x-collegium-expert"] == "general"
    finally:
        done.set()
        asking.join()
    assert failures == []


def test_an_expert_inside_the_own_network_is_refused(serving: Serving, echo: EchoExpert) -> None:
    inside = _card("inside", echo.url.replace("127.0.0.1", "127.0.0.2"))
    refused = serving.http.post(f"{serving.admin}/experts", json=inside, headers=serving.admin_headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "card")
    assert "--allow-network 127.0.0.2" in refused.json()["error"]["message"]


def test_a_second_one_on_the_same_folder_is_refused(serving: Serving) -> None:
    second = subprocess.run(serving.command(), env=serving.environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"process {serving.process.pid}" in second.stderr and serving.base in second.stderr


def test_a_taken_port_is_named(serving: Serving, tmp_path: Path) -> None:
    command = serving.command()
    command[command.index("--state") + 1] = str(tmp_path / "other")
    second = subprocess.run(command, env=serving.environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"127.0.0.1:{serving.port}" in second.stderr and "--port" in second.stderr


def test_the_edge_killed_is_replaced_and_no_connection_is_refused(serving: Serving) -> None:
    edge = _child(serving.process.pid, "collegium.serve.edge")
    edge.kill()
    # Connections ended with that edge; a new one waits in the socket that the supervisor holds.
    serving.http.close()
    serving.http = httpx2.Client(trust_env=False, timeout=120)
    answer = serving.chat("hello again")
    assert answer.status_code == 200
    assert _child(serving.process.pid, "collegium.serve.edge").pid != edge.pid


def test_killed_and_started_again_it_has_the_same_experts(echo: EchoExpert, tmp_path: Path) -> None:
    with _serving(echo, tmp_path) as serving:
        extra = _card("extra", echo.url, domains={"law": 0.9}, admitted=["law"])
        assert (
            serving.http.post(f"{serving.admin}/experts", json=extra, headers=serving.admin_headers).status_code == 201
        )
        until(lambda: "extra" in serving.models())
        children = psutil.Process(serving.process.pid).children(recursive=True)
        serving.process.kill()
        serving.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, "the edge and the reconciler end with their supervisor"
        serving.start()
        serving.wait_ready()
        until(lambda: serving.models() == {"auto", "general", "extra"})
        records = serving.http.get(f"{serving.admin}/experts", headers=serving.admin_headers).json()
        assert sorted(record["name"] for record in _rows(records)) == ["extra", "general"]


def _rows(data: object) -> list[dict[str, str]]:
    rows = data["data"] if isinstance(data, dict) and "data" in data else data
    assert isinstance(rows, list)
    return rows


def test_the_state_folder_is_private(serving: Serving) -> None:
    assert serving.folder.stat().st_mode & 0o077 == 0
    for secret in ("admin.key", "internal.key"):
        assert (serving.folder / secret).stat().st_mode & 0o077 == 0


def test_stop_ends_it_from_another_terminal(echo: EchoExpert, tmp_path: Path) -> None:
    with _serving(echo, tmp_path) as serving:
        command = [sys.executable, "-m", "collegium.cli.main", "stop", "--state", str(serving.folder)]
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert stopped.stdout.strip() == "stopped"
        assert serving.process.wait(60) == 0


def test_metrics_and_logs_hold_no_prompt(serving: Serving) -> None:
    canary = "canary-prompt-7391"
    assert serving.chat(f"hello {canary}").status_code == 200
    metrics = serving.http.get(f"{serving.base}/metrics").text
    assert "collegium_" in metrics and canary not in metrics
    for log in (serving.folder / "logs").iterdir():
        assert canary not in log.read_text(), log.name


@pytest.mark.parametrize("module", ["collegium.experts.reconciler", "collegium.serve.edge"])
def test_what_starts_after_its_supervisor_was_killed_ends_at_once(module: str, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", module, "--state", str(tmp_path / "state"), "--parent", str(gone.pid)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "the parent process is gone" in ended.stderr


def _child(pid: int, module: str) -> psutil.Process:
    found = [child for child in psutil.Process(pid).children() if module in " ".join(child.cmdline())]
    assert len(found) == 1, json.dumps([child.cmdline() for child in found])
    return found[0]
