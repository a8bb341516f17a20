"""Experts that register and are removed at a steady rate, from a process of its own: `changes.py REGISTRY URL RATE`.

Each has the remote URL; RATE counts both, a second. Until SIGTERM.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from collegium.experts.card import Card, parse_card
from collegium.experts.registry import Registry, State
from serve_kit import WORDS


def expert(name: str, url: str, chance: random.Random) -> Card:
    """An expert of chance skills, admitted to one domain."""
    skills = {domain: chance.random() for domain in WORDS}
    backend = {"kind": "remote", "url": url, "model": "scripted"}
    return parse_card({"name": name, "backend": backend, "domains": skills, "admitted": [chance.choice([*WORDS])]})


def register(registry: Registry, card: Card, url: str) -> None:
    registry.add(card)
    registry.observe(card.name, State.READY, base_url=url)


def main(address: str, url: str, rate: float) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    registry, chance = Registry(address), random.Random(0)
    due, done, began = time.monotonic(), 0, time.monotonic()
    while not over.is_set():
        name = f"x{time.monotonic_ns()}"
        register(registry, expert(name, url, chance), url)
        registry.remove(name)
        registry.forget(name)
        done += 2
        due += 2 / rate
        over.wait(max(due - time.monotonic(), 0))
    print(round(done / (time.monotonic() - began), 1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
