"""A tiny base model and LoRA adapters of it as files, and a replica that speaks vLLM's adapter API on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, LAYERS, RANK = 8, 12, 2, 2
_SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (INNER, HIDDEN)}

Tensors = dict[str, np.ndarray]


def base_folder(folder: Path, hidden: int = HIDDEN) -> Path:
    """A model folder with two layers of two matrices."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tensors = {
        f"model.layers.{layer}.{module}.weight": np.ones((out, hidden), np.float32)
        for layer in range(LAYERS)
        for module, (out, _) in _SHAPES.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def tensors(hidden: int = HIDDEN, rank: int = RANK) -> Tensors:
    found: Tensors = {}
    for layer in range(LAYERS):
        for module, (out, _) in _SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = np.ones((rank, hidden), np.float32)
            found[f"{name}.lora_B.weight"] = np.zeros((out, rank), np.float32)
    return found


def adapter_folder(
    folder: Path,
    change: Callable[[Tensors], object] = lambda tensors: None,
    settings: Mapping[str, object] | None = None,
    rank: int = RANK,
) -> Path:
    """An adapter that fits the base, changed as asked."""
    folder.mkdir(parents=True)
    config: Mapping[str, object] = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "bias": "none",
        "base_model_name_or_path": "lab/elsewhere", **(settings or {}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    made = tensors(rank=rank)
    change(made)
    save_file(made, folder / "adapter_model.safetensors")
    return folder


class FakeReplica:
    """Holds adapters as a vLLM server does; `busy` names those whose requests run, `refuses` those it does not load."""

    def __init__(self, base: str) -> None:
        self.loaded: dict[str, str] = {}
        self.busy: set[str] = set()
        self.refuses: dict[str, str] = {}
        self.keys: set[str | None] = set()
        self.base = base
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/engine/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict[str, str]) -> tuple[int, object]:
        name = body.get("lora_name", "")
        if path == "/engine/v1/models":
            rows = [{"id": self.base, "parent": None}, *({"id": one, "parent": self.base} for one in self.loaded)]
            return 200, {"object": "list", "data": rows}
        if path == "/engine/v1/load_lora_adapter" and name in self.refuses:
            return 500, {"error": {"message": f"Traceback ...\nValueError: {self.refuses[name]}", "code": 500}}
        if path == "/engine/v1/load_lora_adapter" and Path(body["lora_path"], "adapter_model.safetensors").is_file():
            self.loaded[name] = body["lora_path"]
            return 200, "added"
        if path == "/engine/v1/unload_lora_adapter" and self.loaded.pop(name, ""):
            return 200, "removed"
        return 404, {"detail": "Not Found"}

    def metrics(self) -> str:
        """As vLLM writes them: a series for each state that was, the newest with the highest time."""
        labels = 'vllm:lora_requests_info{engine="0",running_lora_adapters="%s",waiting_lora_adapters=""} %s'
        running = f'vllm:num_requests_running{{engine="0"}} {len(self.busy)}.0'
        newest = labels % (",".join(sorted(self.busy)), "1.8e+09")
        return "\n".join([running, labels % ("long-gone", "1.7e+09"), newest, ""])


def _handler(replica: FakeReplica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/engine/metrics":
                self._send(200, replica.metrics().encode())
            else:
                self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, str]) -> None:
            replica.keys.add(self.headers["authorization"])
            status, answer = replica.answer(self.path, body)
            self._send(status, json.dumps(answer).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler
