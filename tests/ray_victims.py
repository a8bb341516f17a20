"""What runs an engine and what serves it, as processes to be killed by their id."""

from __future__ import annotations

import psutil
from collegium.experts.processes import marked
from collegium.experts.ray_cluster import RayCluster
from collegium.experts.state import StateFolder
from whole_kit import Serving

CORE = "VLLM::EngineCore"
# By a part of the process's title; the replica is found as the parent of its core.
ON_RAY = {
    "engine core": CORE,
    "Serve replica": CORE,
    "request router": "LLMRouter",
    "HAProxy": "haproxy",
    "HAProxy's manager": "HAProxyManager",
    "Serve controller": "ServeController",
}
OURS = {"edge worker": "collegium.serve.edge", "reconciler": "collegium.experts.reconciler"}
SUPERVISOR = "supervisor"


def victims(serving: Serving, kind: str) -> list[psutil.Process]:
    """The living processes of a kind."""
    if kind == SUPERVISOR:
        return [psutil.Process(serving.process.pid)]
    if kind in OURS:
        children = psutil.Process(serving.process.pid).children()
        return [child for child in children if OURS[kind] in _told(child)]
    found = [process for process in on_ray(serving) if ON_RAY[kind] in _name(process)]
    if kind == "Serve replica":
        return [parent for core in found if (parent := _parent(core)) is not None and "ServeReplica" in _name(parent)]
    return found


def on_ray(serving: Serving) -> list[psutil.Process]:
    return marked(RayCluster(StateFolder(serving.folder)).mark)


def work(serving: Serving) -> dict[int, float]:
    """Seconds of CPU time that each engine core has used, with what runs below it."""
    return {core.pid: _seconds(core) for core in victims(serving, "engine core")}


def busiest(serving: Serving, since: dict[int, float], kind: str) -> psutil.Process:
    """The engine core that has worked most since `work()` was asked, or (`kind`) the replica around it."""
    cores = victims(serving, "engine core")
    core = max(cores, key=lambda one: _seconds(one) - since.get(one.pid, 0.0))
    parent = _parent(core)
    assert parent is not None
    return core if kind == "engine core" else parent


def _seconds(core: psutil.Process) -> float:
    total = 0.0
    try:
        for process in (core, *core.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass
    return total


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _told(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None
