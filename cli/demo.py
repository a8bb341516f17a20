"""`collegium demo`: the whole way once, on this machine: serve, ask, add an expert live, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import httpx2
import yaml
from rich.console import Console
from rich.table import Table

from ..experts.adapter import PACKAGE
from ..experts.backends import AdapterBackend
from ..experts.pool import load_pool
from ..experts.processes import die_with_parent
from ..experts.ray_cluster import free_ports
from ..experts.state import StateFolder

PROMPTS = (
    "What is 15% of 240? Explain in one sentence.",
    "Write a Python function that reverses a string.",
    "What are the early symptoms of dehydration?",
    "Why is the sky blue during the day?",
    "Can my landlord keep my deposit without giving a reason?",
    "Should I pay off my credit card before I start investing?",
    "Why did the Roman Republic fall?",
    "Write the first two lines of a poem about the sea.",
    "Hi! What should I cook tonight?",
)
LAW_PROMPT = PROMPTS[4]
LAW_CARD: dict[str, object] = {
    "name": "law",
    "description": "Legal questions, on the generalist's engine.",
    "backend": {
        "kind": "prompted",
        "engine": "general",
        "system_prompt": "You answer legal questions in plain words. Say which facts and which country's law matter.",
        "sampling": {"temperature": 0.2},
    },
    "domains": {"law": 0.6},
    "admitted": ["law"],
    "licence": "Apache-2.0",
}
WIDTH = 150  # columns where the output goes to a pipe
START_LIMIT = 600.0  # seconds for engines to come up, the conversion of the weights included


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered prompt: what the headers say, the text, and the seconds it took."""

    domain: str
    confidence: str
    expert: str
    reason: str
    text: str
    seconds: float


@click.command()
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("~/.local/state/collegium-demo"),
    show_default=True,
    help="Folder that the demo keeps its registry and logs in.",
)
@click.option("--max-tokens", type=click.IntRange(1, 512), default=40, show_default=True)
def command(state: Path, max_tokens: int) -> None:
    """Serve the demo pool, ask one prompt per domain, add an expert live, stop.

    Runs on a CPU in about 5 GB of memory. Everything it starts it also stops.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    port, admin_port = free_ports(("public", "admin")).values()
    base = f"http://127.0.0.1:{port}"
    folder = StateFolder(state)
    with _served(folder, port, admin_port), httpx2.Client(timeout=300, trust_env=False) as client:
        _wait_ready(client, base)
        console.print("\n[bold]One prompt per domain[/bold], model: auto")
        _ask_all(console, client, base, max_tokens)
        _add_live(console, client, base, f"http://127.0.0.1:{admin_port}", folder.admin_key(), max_tokens)
        console.print("\nStopping. To keep it running: [bold]make serve[/bold] or [bold]collegium serve demo[/bold]")


@contextmanager
def _served(folder: StateFolder, port: int, admin_port: int) -> Iterator[None]:
    """`collegium serve demo` as a user would type it; its lines go to this terminal."""
    arguments = ["serve", "demo", "--apply-pool", "--state", str(folder.path)]
    arguments += ["--port", str(port), "--admin-port", str(admin_port)]
    command = [sys.executable, "-m", "collegium.cli.main", *arguments]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(die_with_parent, parent=os.getpid()))
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(180)
    if code != 0:
        raise click.ClickException(f"collegium serve ended with code {code}; see {folder.logs}")


def _wait_ready(client: httpx2.Client, base: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        try:
            if client.get(f"{base}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise click.ClickException(f"no expert was ready within {START_LIMIT:g} s")


def _ask_all(console: Console, client: httpx2.Client, base: str, max_tokens: int) -> None:
    adapters = _adapters()
    table = Table("prompt", "domain", "conf.", "expert", "adapter", "first words of the answer", "s")
    with console.status("asking") as status:
        for prompt in PROMPTS:
            status.update(f"asking: {prompt}")
            answer = _ask(client, base, prompt, max_tokens)
            first = " ".join(answer.text.split())[:60]
            who = (answer.expert, adapters.get(answer.expert, "none"))
            table.add_row(prompt, answer.domain, answer.confidence, *who, first, f"{answer.seconds:.1f}")
    console.print(table)


def _adapters() -> dict[str, str]:
    """The trained adapter behind each expert of the pool that has one."""
    return {
        card.name: card.backend.adapter.removeprefix(PACKAGE)
        for card in load_pool("demo")
        if isinstance(card.backend, AdapterBackend)
    }


def _add_live(console: Console, client: httpx2.Client, base: str, admin: str, admin_key: str, max_tokens: int) -> None:
    console.print("\n[bold]Add an expert to the running endpoint[/bold]: POST /admin/experts with this card")
    console.print(yaml.safe_dump(LAW_CARD, sort_keys=False, width=WIDTH).rstrip(), style="cyan", highlight=False)
    headers = {"authorization": f"Bearer {admin_key}"}
    started = time.monotonic()
    response = client.post(f"{admin}/admin/experts", json=LAW_CARD, headers=headers)
    if response.status_code != 201:
        raise click.ClickException(f"the admin API refused the card: {response.text}")
    _until(lambda: "law" in _models(client, base), "the new expert did not become ready")
    seconds = time.monotonic() - started
    answer = _ask(client, base, LAW_PROMPT, max_tokens)
    console.print(
        f"listed in /v1/models after {seconds:.2f} s; the law prompt now goes to: [bold]{answer.expert}[/bold]"
    )
    console.print(f"  reason: {answer.reason}")
    client.delete(f"{admin}/admin/experts/law", headers=headers).raise_for_status()
    _until(
        lambda: client.get(f"{admin}/admin/experts/law", headers=headers).status_code == 404,
        "the expert was not removed",
    )
    console.print("and removed again")


def _ask(client: httpx2.Client, base: str, prompt: str, max_tokens: int) -> Answer:
    started = time.monotonic()
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "auto", "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    response = client.post(f"{base}/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise click.ClickException(f"HTTP {response.status_code}: {response.text}")
    headers = response.headers
    return Answer(
        domain=headers["x-collegium-domain"],
        confidence=headers["x-collegium-confidence"],
        expert=headers["x-collegium-expert"],
        reason=headers["x-collegium-reason"],
        text=json.loads(response.text)["choices"][0]["message"]["content"],
        seconds=time.monotonic() - started,
    )


def _models(client: httpx2.Client, base: str) -> set[str]:
    return {model["id"] for model in client.get(f"{base}/v1/models").json()["data"]}


def _until(condition: Callable[[], bool], otherwise: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise click.ClickException(f"{otherwise} within {seconds:g} s")
        time.sleep(0.05)
