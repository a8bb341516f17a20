"""Background load from a process of its own: ordinary requests at a steady rate, each answer held against the model's.

`python load.py URL RATE SEED [MODEL ...]`, until SIGTERM; then one line of JSON with what came of them.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.engine import greedy

MODELS = ("auto", "coding", "math", "safe", "general")


async def ask(
    session: aiohttp.ClientSession, url: str, number: int, models: Sequence[str], chance: random.Random
) -> str:
    """What came of one request: "right", or what was wrong."""
    text = f"load-{number} python sum, {chance.choice((5, 20, 40))} tokens"
    body = {
        "model": chance.choice(models),
        "temperature": 0,
        "messages": [{"role": "user", "content": text}],
        "stream": number % 2 == 0,
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            raw = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
    if response.status != 200:
        return f"status {response.status} {json.loads(raw)['error']['code']}"
    if not body["stream"]:
        said = json.loads(raw)["choices"][0]["message"]["content"]
    else:
        if not raw.endswith("data: [DONE]\n\n"):
            return "cut"
        chunks = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    return "right" if said == greedy(body) else "wrong"


async def main(url: str, rate: float, seed: int, models: Sequence[str]) -> None:
    """Open loop: requests go out at random times, however long the answers take."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    chance = random.Random(seed)
    results: Counter[str] = Counter()
    times: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        results[await ask(session, url, number, models, chance)] += 1
        times.append(time.monotonic() - began)

    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # a kept connection may be closed under a request
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        running: set[asyncio.Task[None]] = set()
        due, number = time.monotonic(), 0
        while not stop.is_set():
            due += chance.expovariate(rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(one(number))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.gather(*running)
    times.sort()
    p50, p99 = (round(times[int(len(times) * share)], 4) if times else 0 for share in (0.5, 0.99))
    print(json.dumps({"results": results, "p50": p50, "p99": p99}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or MODELS))
