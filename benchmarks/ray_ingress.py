"""The scripted expert as a Ray Serve deployment behind one of Ray's own ingresses, on loopback, ended by its ids.

Ray has two: its Python proxy, which is the default, and HAProxy, which this project's engines use. A cluster has one of
them, so that each gets a small cluster of its own. As a command this module starts one and deploys the expert there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from collegium.experts.processes import marked
from collegium.experts.ray_cluster import RayCluster, RayError
from collegium.experts.state import StateFolder

PROXIES = {"haproxy": "HAProxy", "python": "Python proxy"}
START = 300.0  # seconds
_ANSWERING = ("haproxy", "ray::ServeReplica", "ray::ProxyActor")


class Ingress:
    """A Ray cluster of its own with the scripted expert on it."""

    def __init__(self, folder: Path, proxy: str) -> None:
        self._state = folder / f"ray-{proxy}"
        self._proxy = proxy
        self._cluster = RayCluster(StateFolder(self._state))

    def start(self) -> str:
        """Start it; returns the base URL.

        Raises:
            RayError: Ray is not installed, or the expert did not start there; the message is the last it said.
        """
        command = [sys.executable, __file__, "--state", str(self._state), "--proxy", self._proxy]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=START, check=False)
        except subprocess.TimeoutExpired as error:
            raise RayError(f"not there after {START:g} seconds") from error
        if done.returncode:
            raise RayError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        return f"http://127.0.0.1:{self._cluster.http_port}"

    def processes(self) -> tuple[psutil.Process, ...]:
        """The proxy and the replica, without Ray's own bookkeeping."""
        found = []
        for process in marked(self._cluster.mark):
            title = Path(process.cmdline()[0]).name if process.cmdline() else ""
            if title.startswith(_ANSWERING):
                found.append(process)
        return tuple(found)

    def stop(self) -> None:
        self._cluster.stop()


class _Cluster(RayCluster):
    def __init__(self, state: StateFolder, proxy: str) -> None:
        super().__init__(state)
        self._proxy = proxy

    def environment(self) -> dict[str, str]:
        return super().environment() | {"RAY_SERVE_ENABLE_HA_PROXY": "1" if self._proxy == "haproxy" else "0"}


def _build() -> Callable[..., Awaitable[None]]:
    """Called in the replica: Serve takes a plain function for one that builds the application."""
    from scripted import expert

    return expert


def _deploy(cluster: RayCluster) -> None:
    os.environ.update(cluster.environment())
    import ray
    from ray import serve

    ray.init(cluster.address, namespace="collegium", log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": cluster.http_port})
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    deployment = serve.deployment(
        serve.ingress(_build)(), max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0, "runtime_env": here}
    )
    serve.run(deployment.bind(), name="scripted", route_prefix="/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--proxy", choices=PROXIES, required=True)
    options = parser.parse_args()
    running = _Cluster(StateFolder(options.state), options.proxy)
    running.ensure()
    _deploy(running)
