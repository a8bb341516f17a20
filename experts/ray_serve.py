"""Engines on Ray Serve: a card becomes a running application, and Serve's status becomes plain words.

Only this module and the Ray command line know Ray; it is imported when a connection is made.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from .backends import EngineBackend
from .card import Card
from .guard import KEY, Guard
from .lifeline import Lifeline
from .ray_cluster import RayError
from .state import engine_key
from .weights import locate

Phase = Literal["starting", "running", "restarting", "failed", "deleting"]
HEALTH_PERIOD = 2.0  # seconds; so long a killed replica may go unnoticed
HEALTH_TIMEOUT = 60.0  # seconds; an engine on a busy machine is slow, not dead
SHUTDOWN_GRACE = 30.0  # seconds Serve gives a replica that is told to stop
_PHASES: Mapping[str, Phase] = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "starting",
    "RUNNING": "running",
    "UNHEALTHY": "restarting",  # Serve starts the replica again by itself
    "DEPLOY_FAILED": "failed",
    "DELETING": "deleting",
}
_CAUSE = re.compile(r"^\s*(?:ray\.exceptions\.\w+\(\w+\): )?(?:[\w.]*\.)?(\w*(?:Error|Exception)): (.+)$")


@dataclass(frozen=True, slots=True)
class App:
    """One engine as it is. `name` is Serve's; `reason` says why it is not running, in words.

    `replicas` are the base URLs of the replicas' own HTTP servers, where HAProxy sends what comes to `base_url`.
    """

    name: str
    expert: str
    fingerprint: str
    phase: Phase
    reason: str
    base_url: str
    replicas: tuple[str, ...] = ()


class RayServe:
    """A connection to Serve on one Ray cluster, and the applications there that belong to one collegium."""

    def __init__(
        self, address: str, internal_key: str, host: str | None = None, port: int | None = None, staged: str = ""
    ) -> None:
        """`host` and `port` are for a Serve that this call starts; one that runs already keeps its own.

        `staged` is the folder of staged adapters, where engines can read it.
        """
        self._address = address
        self._staged = staged
        self._internal_key = internal_key
        self._options = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        # Machines that share a registry share the internal key; another collegium on the same Ray has another.
        self._prefix = f"collegium-{hashlib.sha256(internal_key.encode()).hexdigest()[:8]}-"
        self._root = ""

    def connect(self) -> None:
        """Join the cluster and make sure that Serve runs.

        Raises:
            RayError: Ray is not installed, not there, or refuses the token.
        """
        try:
            import ray
            from ray import serve
        except ImportError as error:
            raise RayError(f"Ray cannot be imported ({error}); run: pip install 'collegium[cpu]'") from error
        # At a lower level Serve logs an application's environment, and the engine's key is in it.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # ray.serve.llm has every request logged
        with _translated("Ray cannot be joined"):
            ray.shutdown()
            ray.init(self._address, namespace="collegium", log_to_driver=False, configure_logging=False)
            serve.start(http_options=self._options or None)
            options = serve.context._get_global_client().http_config
            host = options.host
            if host in (None, "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
                host = ray.get_runtime_context().gcs_address.rsplit(":", 1)[0]
            self._root = f"http://{host}:{options.port}"

    def app_name(self, card: Card) -> str:
        """Contains the engine's fingerprint, so that a changed engine starts beside the one before."""
        return f"{self._prefix}{card.name}-{card.engine_fingerprint}"

    def status(self) -> dict[str, App]:
        """Our applications by name.

        Raises:
            RayError: the cluster does not answer.
        """
        from ray import serve

        with _translated("Ray does not answer"):
            found = serve.status().applications
            replicas = self._replicas()
        return {
            name: self._app(name, overview, replicas.get(name, ()))
            for name, overview in found.items()
            if name.startswith(self._prefix)
        }

    def deploy(self, card: Card) -> None:
        """Ask for the card's engine and return at once; `status` tells how it goes. Converts weights where needed.

        Raises:
            RayError: Serve refuses the application.
            WeightsError: the model cannot be found.
        """
        try:
            from ray import serve
            from ray.serve.llm import LLMConfig, build_openai_app
        except ImportError as error:
            raise RayError(f"ray.serve.llm cannot be imported ({error}); run: collegium doctor") from error
        if not isinstance(card.backend, EngineBackend):
            raise TypeError(f"expert {card.name!r} has a {card.backend.kind} backend, which runs no engine")
        key = engine_key(self._internal_key, card.name)
        settings = engine_settings(card, locate(card.backend.model), key, self._staged)
        name = self.app_name(card)
        with _translated(f"Ray refuses the engine of {card.name}"):
            app = build_openai_app({"llm_configs": [LLMConfig(**settings)]})
            target = serve.RunTarget(app, name=name, route_prefix=self._route(name))
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)

    def delete(self, name: str) -> None:
        """Ask for an application's end and return at once. Raises RayError."""
        from ray import serve

        with _translated(f"Ray does not delete {name}"):
            serve.context._get_global_client().delete_apps([name], blocking=False)

    def _route(self, name: str) -> str:
        expert, _, fingerprint = name.removeprefix(self._prefix).rpartition("-")
        return f"/experts/{expert}/{fingerprint}"

    def _replicas(self) -> dict[str, tuple[str, ...]]:
        """Base URLs of the replicas' own HTTP servers by application: what HAProxy is told."""
        import ray
        from ray import serve

        controller = serve.context._get_global_client()._controller
        groups = ray.get(controller.get_target_groups.remote(from_proxy_manager=True), timeout=30)
        return {
            group.app_name: tuple(f"http://{one.ip}:{one.port}{group.route_prefix}/v1" for one in group.targets)
            for group in groups
            if group.protocol.value == "HTTP" and group.app_name.startswith(self._prefix)
        }

    def _app(self, name: str, overview: Any, replicas: tuple[str, ...]) -> App:  # noqa: ANN401 - Ray's, untyped here
        expert, _, fingerprint = name.removeprefix(self._prefix).rpartition("-")
        phase = app_phase(overview)
        messages = [overview.message, *(deployment.message for deployment in overview.deployments.values())]
        reason = phase_reason(phase, "\n".join(messages))
        return App(name, expert, fingerprint, phase, reason, f"{self._root}{self._route(name)}/v1", replicas)


def preload() -> None:
    """Import what `deploy` needs (vLLM and torch come with it: ten seconds and more) while Ray is waited for."""
    with suppress(ImportError):
        import_module("ray.serve.llm")


def engine_settings(card: Card, source: str, key: str, staged: str = "") -> dict[str, Any]:
    """What Ray's LLMConfig gets for an engine card whose weights are at `source`, and its adapters at `staged`."""
    backend = card.backend
    if not isinstance(backend, EngineBackend):
        raise TypeError(f"expert {card.name!r} has a {backend.kind} backend, which runs no engine")
    engine: dict[str, Any] = dict(backend.options)
    engine |= {"tensor_parallel_size": backend.tensor_parallel_size, "dtype": backend.dtype}
    if backend.max_model_len:
        engine["max_model_len"] = backend.max_model_len
    if backend.revision:
        engine["revision"] = backend.revision
    if staged:  # an engine on this machine, where this package is installed
        engine["middleware"] = [f"{one.__module__}.{one.__qualname__}" for one in (Guard, Lifeline)]
    if backend.adapters is not None:
        room = backend.adapters
        engine |= {"enable_lora": True, "max_loras": room.max, "max_lora_rank": room.max_rank}
        engine["lora_target_modules"] = room.modules
    settings: dict[str, Any] = {
        "model_loading_config": {"model_id": card.name, "model_source": source},
        "engine_kwargs": engine,
        "log_engine_metrics": False,  # else they go to Ray, and /metrics does not say which requests run
        "deployment_config": _deployment(backend),
        "runtime_env": {"env_vars": _variables(backend, source, key, staged)},
    }
    if backend.on_cpu:
        settings["accelerator_config"] = {"kind": "cpu"}
    elif backend.accelerator != "gpu":
        settings["accelerator_type"] = backend.accelerator
    return settings


def _deployment(backend: EngineBackend) -> dict[str, Any]:
    scaling = backend.autoscaling
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": SHUTDOWN_GRACE,
        "health_check_period_s": HEALTH_PERIOD,
        "health_check_timeout_s": HEALTH_TIMEOUT,
    }
    if scaling is None:
        return common | {"num_replicas": backend.replicas}
    return common | {
        "autoscaling_config": {
            "min_replicas": scaling.min,
            "max_replicas": scaling.max,
            "target_ongoing_requests": scaling.target_ongoing_requests,
        }
    }


def _variables(backend: EngineBackend, source: str, key: str, staged: str) -> dict[str, str]:
    variables = {KEY: key, "VLLM_NO_USAGE_STATS": "1"}
    if backend.adapters is not None:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        if staged:  # a replica that starts later finds there what a request names, before it is told
            variables["VLLM_LORA_RESOLVER_CACHE_DIR"] = staged
    if Path(source).is_absolute():
        variables["HF_HUB_OFFLINE"] = "1"
    if backend.on_cpu:
        # Measured for the 135M model: process and weights take most of the memory, a quarter is left for the cache.
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, int(backend.memory_gb / 4)))
    return variables


def app_phase(overview: Any) -> Phase:  # noqa: ANN401 - Ray's, untyped here
    """The phase that Serve's overview of an application tells of.

    A replica that dies while Serve takes its deployment for being updated, as it does for a while after its controller
    was started again, makes it call the deployment's start failed; it starts the replica again all the same.
    """
    phase = _PHASES[str(overview.status.value)]
    failed = [one for one in overview.deployments.values() if one.status.value == "DEPLOY_FAILED"]
    if phase == "failed" and failed and all(one.status_trigger.value == "HEALTH_CHECK_FAILED" for one in failed):
        return "restarting"
    return phase


def phase_reason(phase: Phase, message: str) -> str:
    """Why an application is not running, in words; empty where there is nothing to say."""
    if phase == "failed":
        return failure_reason(message)
    if phase == "restarting":
        return "a replica of the engine stopped answering; Ray starts it again"
    if phase == "starting" and "to be scheduled" in message:
        return "Ray starts its process, or waits for CPUs or GPUs that are free"
    if phase == "starting" and "to initialize" in message:
        return "the engine loads the model"
    return ""


def failure_reason(message: str) -> str:
    """One sentence out of Serve's messages: the innermost error of the traceback in it, or its first line."""
    lines = message.splitlines()
    causes = [(number, found) for number, line in enumerate(lines) if (found := _CAUSE.match(line))]
    if causes:
        number, found = causes[-1]
        return f"{found[1]}: {_with_detail(found[2].strip(), lines[number + 1 :])}"[:400]
    return next((line.strip()[:400] for line in lines if line.strip()), "")


def _with_detail(text: str, following: Sequence[str]) -> str:
    """pydantic says on its first line only that something is wrong, and below it what."""
    if "validation error" not in text:
        return text
    detail = next((line.strip() for line in following if line.strip()), "")
    return f"{text}: {detail.partition(' [type=')[0].removeprefix('Value error, ')}".removesuffix(": ")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Ray's errors, and those of its client library, as RayError."""
    import ray.exceptions
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (ray.exceptions.RayError, RayServeException, OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise RayError(f"{what}: {failure_reason(str(error)) or type(error).__name__}") from error
