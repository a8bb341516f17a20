"""One replica of an engine, by vLLM's own HTTP API: which LoRA adapters it holds, and how they come and go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx2

LOAD_LIMIT = 60.0  # seconds; a large adapter from a slow disk
LOOK_LIMIT = 5.0
_IN_USE = re.compile(r'(?:running|waiting)_lora_adapters="([^"]*)"')
_ENGINE = re.compile(r'engine="([^"]*)"')
_METRIC = "vllm:lora_requests_info{"


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica holds, None where it did not answer, and why it refused what it was to load."""

    loaded: frozenset[str] | None
    refused: Mapping[str, str] = field(default_factory=dict)


class Replica:
    """`url` is the replica's own OpenAI base URL: behind HAProxy a call would reach any one of them."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(headers=headers, timeout=LOOK_LIMIT, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def settle(self, load: Mapping[str, str], unload: frozenset[str], overdue: frozenset[str]) -> ReplicaState:
        """Load what is missing (name -> folder), unload what is idle and, in any case, what is overdue.

        vLLM lets running requests of an unloaded adapter finish.
        """
        try:
            present = self._loaded()
            missing = {name: folder for name, folder in load.items() if name not in present}
            refused = {name: reason for name, folder in missing.items() if (reason := self._load(name, folder))}
            going = present & unload
            going -= (self._in_use() - overdue) if going else frozenset()
            for name in going:
                self._http.post(f"{self.url}/unload_lora_adapter", json={"lora_name": name})
            return ReplicaState(self._loaded() if missing or going else present, refused)
        except (httpx2.HTTPError, _UnexpectedAnswerError):
            return ReplicaState(None)

    def _loaded(self) -> frozenset[str]:
        """Adapters are the models that name a parent."""
        answer = self._http.get(f"{self.url}/models")
        if answer.status_code != 200:
            raise _UnexpectedAnswerError(answer.status_code)
        return frozenset(str(row["id"]) for row in answer.json()["data"] if row.get("parent"))

    def _load(self, name: str, folder: str) -> str:
        """The reason for a refusal; empty where the adapter is loaded, by this call or by a request before it."""
        body = {"lora_name": name, "lora_path": folder}
        answer = self._http.post(f"{self.url}/load_lora_adapter", json=body, timeout=LOAD_LIMIT)
        if answer.status_code == 200 or "already been loaded" in answer.text:
            return ""
        if answer.status_code in (404, 405) and "lora_name" not in answer.text:
            return "the engine takes no adapters at run time; set `adapters` in its card"
        return f"the engine refuses the adapter: {_message(answer)}"

    def _in_use(self) -> frozenset[str]:
        """Adapters with requests that run or wait. vLLM writes a series for each state; the newest is the present."""
        newest: dict[str, tuple[float, str]] = {}
        for line in self._http.get(self.url.removesuffix("/v1") + "/metrics").text.splitlines():
            if line.startswith(_METRIC):
                labels, _, value = line.rpartition(" ")
                engine = found[1] if (found := _ENGINE.search(labels)) else ""
                newest[engine] = max(newest.get(engine, (0.0, "")), (float(value), labels))
        used = ",".join(listed for _, labels in newest.values() for listed in _IN_USE.findall(labels))
        return frozenset(used.split(",")) - {""}


class _UnexpectedAnswerError(RuntimeError):
    """Something else listens at the replica's address."""


def _message(answer: httpx2.Response) -> str:
    """The last line of vLLM's error: the lines before it are a traceback."""
    try:
        error = answer.json().get("error", {})
    except ValueError:
        return f"status {answer.status_code}"
    lines = str(error.get("message", "")).strip().splitlines() if isinstance(error, dict) else []
    return lines[-1][:300] if lines else f"status {answer.status_code}"
