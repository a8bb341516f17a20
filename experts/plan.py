"""The memory plan: what the engines of a pool need against what this machine has."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from .adapter import adapter_bytes
from .backends import AdapterBackend, EngineBackend
from .card import Card

GIB = 2**30
BASE_GB = 1.5  # Ray's head, Serve's controller and HAProxy, once for all engines: 1.2 measured, rounded up


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is, in GiB: host memory in all, and the memory of each CUDA device."""

    memory_gb: float
    devices_gb: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a pool's engines need on one machine. `problems` holds a sentence for each thing that does not fit."""

    host_gb: float
    device_gb: float
    devices: int
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems


def this_machine() -> Machine:
    """Raises nothing: a machine without nvidia-smi has no CUDA device."""
    return Machine(psutil.virtual_memory().total / GIB, tuple(_devices()))


def plan_memory(cards: Iterable[Card], machine: Machine) -> MemoryPlan:
    """Add up what the engine cards need; prompted experts and URLs need nothing, and the base counts once.

    An adapter adds its own tensors to each replica of its engine, in float32 (twice the size of the file).

    A GPU engine takes whole devices: tensor_parallel_size for each replica, as Ray hands them out.
    """
    engines = list(_engines(list(cards)))
    on_cpu = [(name, backend) for name, backend in engines if backend.on_cpu]
    on_gpu = [(name, backend) for name, backend in engines if not backend.on_cpu]
    host = sum(_gigabytes(backend) for _, backend in on_cpu) + (BASE_GB if engines else 0)
    devices = sum(_devices_of(backend) for _, backend in on_gpu)
    return MemoryPlan(
        host_gb=host,
        device_gb=sum(_gigabytes(backend) for _, backend in on_gpu),
        devices=devices,
        problems=(*_host_problems(on_cpu, host, machine), *_device_problems(on_gpu, devices, machine)),
    )


def _engines(cards: Sequence[Card]) -> Iterator[tuple[str, EngineBackend]]:
    """The engines by name, with the memory of their adapters added to their own."""
    for card in cards:
        if isinstance(card.backend, EngineBackend):
            users = [other.backend for other in cards if isinstance(other.backend, AdapterBackend)]
            extra = sum(2 * adapter_bytes(user) for user in users if user.engine == card.name) / GIB
            yield card.name, card.backend.model_copy(update={"memory_gb": card.backend.memory_gb + extra})


def _host_problems(engines: Sequence[tuple[str, EngineBackend]], needed: float, machine: Machine) -> Iterable[str]:
    if engines and needed > machine.memory_gb:
        listed = ", ".join(f"{name} {round(_gigabytes(backend), 3):g}" for name, backend in engines)
        yield (
            f"the engines on the CPU need {needed:.1f} GB ({listed}, {BASE_GB:g} for Ray), "
            f"this machine has {machine.memory_gb:.1f}; remove one, or run it on another machine"
        )


def _device_problems(engines: Sequence[tuple[str, EngineBackend]], devices: int, machine: Machine) -> Iterable[str]:
    if devices > len(machine.devices_gb):
        listed = ", ".join(f"{name} {_devices_of(backend)}" for name, backend in engines)
        yield (
            f"the engines need {devices} CUDA devices ({listed}), this machine has {len(machine.devices_gb)}; "
            "join a Ray cluster that has them (--ray-address), or set accelerator: cpu for a small model"
        )
        return
    for name, backend in engines:
        share = backend.memory_gb / backend.tensor_parallel_size
        fitting = sum(share <= size for size in machine.devices_gb)
        if fitting < _devices_of(backend):
            yield (
                f"{name} needs {share:.1f} GB on each of {_devices_of(backend)} devices, {fitting} of this machine's "
                "are as large; raise tensor_parallel_size or choose a smaller or quantised model"
            )


def _replicas(backend: EngineBackend) -> int:
    return backend.autoscaling.max if backend.autoscaling else backend.replicas


def _gigabytes(backend: EngineBackend) -> float:
    return backend.memory_gb * _replicas(backend)


def _devices_of(backend: EngineBackend) -> int:
    pipeline = backend.options.get("pipeline_parallel_size", 1)
    stages = pipeline if isinstance(pipeline, int) else 1
    return backend.tensor_parallel_size * stages * _replicas(backend)


def _devices() -> list[float]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [float(line) / 1024 for line in answer.splitlines() if line.strip().isdigit()]
