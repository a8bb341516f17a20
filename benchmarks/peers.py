"""Other gateways in front of the same expert, each from an environment of its own.

They are no dependencies of the project. `--peers DIR...` names folders of virtual environments in which they are looked
for, before PATH. Tried with these versions:

    python -m venv peers/vllm-router && peers/vllm-router/bin/pip install vllm-router==0.1.17
    python -m venv peers/litellm && peers/litellm/bin/pip install 'litellm[proxy]==1.100.0'
    python benchmarks/edge.py --peers peers/vllm-router peers/litellm
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from scripted import MODEL

START = 120.0  # seconds; LiteLLM imports for 20 on two busy cores


def _vllm_router(folder: Path, expert: str, port: int, spare: int) -> list[str]:
    addresses = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", expert]
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(spare)]
    return [*addresses, *metrics, "--policy", "round_robin", "--log-level", "warning"]


def _litellm(folder: Path, expert: str, port: int, spare: int) -> list[str]:
    upstream = {"model": f"openai/{MODEL}", "api_base": f"{expert}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [{"model_name": MODEL, "litellm_params": upstream}]}))
    return ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway: its command, which is also its name, and the arguments for (folder, expert, port, spare port)."""

    name: str
    arguments: Callable[[Path, str, int, int], list[str]]
    variables: Mapping[str, str] = field(default_factory=dict)

    def find(self, folders: Sequence[Path]) -> str | None:
        """The path of its command; None where it is not installed."""
        places = [str(folder / "bin") for folder in folders]
        return shutil.which(self.name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


PEERS = (
    Peer("vllm-router", _vllm_router),
    Peer("litellm", _litellm, {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}),
)


class Running:
    """A peer's processes, ended by their ids on `stop`. It gets none of our environment but PATH."""

    def __init__(self, peer: Peer, command: str, folder: Path, expert: str, port: int, spare: int) -> None:
        own = folder / peer.name
        own.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": str(own), "TMPDIR": str(own), **peer.variables}
        self.log = own / "log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [command, *peer.arguments(own, expert, port, spare)],
                env=environment, cwd=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def processes(self) -> tuple[psutil.Process, ...]:
        parent = psutil.Process(self._process.pid)
        return parent, *parent.children(recursive=True)

    def last_words(self) -> str:
        """The end of its output."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][-200:] if lines else "it said nothing"

    def stop(self) -> None:
        if self._process.poll() is None:
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for child in psutil.wait_procs(children, timeout=5)[1]:
                child.kill()
