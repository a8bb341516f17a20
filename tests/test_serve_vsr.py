"""The headers by which vLLM Semantic Router's own tools read a route: off, unless asked for."""

from __future__ import annotations

import re
import time
from pathlib import Path

from collegium.experts.registry import SkillRecord
from collegium.serve.settings import EdgeSettings
from serve_kit import card, running

NAMES = ("selected-model", "selected-decision", "inference-call-count", "config-hash")


def test_they_tell_the_route_and_change_with_what_it_depends_on(tmp_path: Path) -> None:
    with running(tmp_path, EdgeSettings(vsr_headers=True, breaker_failures=1000)) as edge:
        first = edge.chat("what is the sum of primes").headers
        assert [first[f"x-vsr-{name}"] for name in NAMES[:3]] == ["math", "math", "1"]
        assert re.fullmatch("[0-9a-f]{64}", first["x-vsr-config-hash"])
        named = edge.chat("what is the sum of primes", model="coding").headers
        assert (named["x-vsr-selected-model"], named["x-vsr-config-hash"]) == ("coding", first["x-vsr-config-hash"])
        edge.pool.registry.set_skills("math", [SkillRecord("math", "coding", 9, 10, True)])
        deadline = time.monotonic() + 20
        while edge.chat("primes").headers["x-vsr-config-hash"] == first["x-vsr-config-hash"]:
            assert time.monotonic() < deadline, "the hash does not follow the registry"
            time.sleep(0.05)


def test_calls_are_counted_and_the_expert_that_answers_is_told(tmp_path: Path) -> None:
    settings = EdgeSettings(vsr_headers=True, breaker_failures=1000, connect=0.5, first_byte=5, total=20)
    with running(tmp_path, settings) as edge:
        edge.pool.add(card("gone", "http://127.0.0.1:9/v1", domains={"math": 0.99}, admitted=["math"]))
        deadline = time.monotonic() + 20
        while (answer := edge.chat("sum of primes")).headers["x-vsr-inference-call-count"] == "1":
            assert time.monotonic() < deadline, dict(answer.headers)
            time.sleep(0.05)
        assert answer.status_code == 200
        assert answer.headers["x-vsr-inference-call-count"] == answer.headers["x-collegium-attempts"]
        assert answer.headers["x-vsr-selected-model"] == answer.json()["model"] == "general"


def test_they_are_off_by_default(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        assert not [name for name in edge.chat("primes").headers if name.startswith("x-vsr")]
