"""The real thing: Ray, HAProxy and a vLLM engine, run by the reconciler. Takes minutes and 6 GB of memory."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from collegium.experts.card import parse_card
from collegium.experts.client import KeyRefusedError
from collegium.experts.pool import load_pool
from collegium.experts.processes import marked
from collegium.experts.registry import State, UnknownExpertError
from collegium.experts.state import engine_key
from ray_kit import MARKS, Pool, ready, running

pytestmark = MARKS


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with running(tmp_path_factory.mktemp("ray") / "state", load_pool("demo")) as pool:
        yield pool


def test_the_demo_pool_comes_up_and_answers_only_who_has_the_key(pool: Pool) -> None:
    engine = pool.wait("general", ready)
    key = engine_key(pool.state.internal_key(), "general")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    with pool.client(engine, key) as client:
        assert "general" in client.models()
        assert "Paris" in client.chat("general", asked, temperature=0, max_tokens=24)
        assert "Paris" in "".join(client.stream_chat("general", asked, temperature=0, max_tokens=24))
    with pool.client(engine, None) as stranger, pytest.raises(KeyRefusedError):
        stranger.chat("general", asked, max_tokens=1)
    address = pool.wait("math", ready).base_url
    assert address is not None and address.partition("#")[0] == engine.base_url
    assert key not in pool.log.read_text()


def test_everything_that_was_started_carries_our_mark(pool: Pool) -> None:
    """Also what Ray starts for us: found by its command line here, by the environment in the product."""
    ours = {process.pid for process in marked(pool.cluster.mark)}
    folder = pool.cluster.ports()["gcs"]
    by_command = {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(f":{folder}" in part or "cg-" + pool.cluster.mark[:8] in part for part in process.info["cmdline"] or [])
    }
    assert by_command <= ours
    names = " ".join(process.name() for process in marked(pool.cluster.mark))
    assert all(part in names for part in ("gcs_server", "raylet", "haproxy", "EngineCore", "Worker"))


def test_traffic_statistics_and_control_listen_on_loopback(pool: Pool) -> None:
    """All but the replicas' own gRPC ports, which Ray Serve binds to every interface and guards by the token."""
    open_to_all = {
        process.name()
        for process in marked(pool.cluster.mark)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith("127.0.0.1")
    }
    assert all("ServeRepli" in name for name in open_to_all)


def test_an_added_prompted_expert_is_ready_without_a_new_engine(pool: Pool) -> None:
    before = pool.engines()
    backend = {"kind": "prompted", "engine": "general", "system_prompt": "Answer in one word."}
    pool.registry.add(parse_card({"name": "terse", "backend": backend}))
    assert pool.wait("terse", ready).base_url == pool.registry.expert("general").base_url
    assert pool.engines() == before


def test_a_killed_reconciler_is_followed_by_one_that_adopts(pool: Pool) -> None:
    before, url = pool.engines(), pool.registry.expert("general").base_url
    assert len(before) == 1
    pool.kill(signal.SIGKILL)
    pool.start()
    pool.registry.replace(parse_card({**pool.registry.expert("terse").card.model_dump(), "description": "new"}))
    pool.registry.observe("terse", State.STARTING, "until the new reconciler looks", None)
    assert pool.wait("terse", ready).base_url == url
    assert pool.engines() == before


def test_a_broken_model_fails_with_its_reason_and_disturbs_nobody(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nosuch", "architectures": ["NoSuchForCausalLM"]}')
    backend = {"kind": "engine", "model": str(tmp_path), "accelerator": "cpu", "memory_gb": 0.5}
    before = pool.engines()
    pool.registry.add(parse_card({"name": "broken", "backend": backend}))
    failed = pool.wait("broken", lambda record: record.state is State.FAILED)
    assert "nosuch" in failed.reason.lower()
    assert pool.engines() == before and ready(pool.registry.expert("general"))


def test_sigterm_leaves_the_engines(pool: Pool) -> None:
    before = pool.engines()
    assert pool.kill(signal.SIGTERM) == 0
    assert pool.engines() == before
    pool.start()


def test_removal_ends_the_engine_and_the_records(pool: Pool) -> None:
    for name in ("terse", "math", "coding", "health", "science", "broken"):
        pool.registry.remove(name)
    pool.registry.remove("general")
    deadline = time.monotonic() + 300
    while pool.registry.experts():
        assert time.monotonic() < deadline, [pool.tell(record) for record in pool.registry.experts()]
        time.sleep(0.2)
    with pytest.raises(UnknownExpertError):
        pool.registry.expert("general")
    while pool.engines():
        assert time.monotonic() < deadline, pool.engines()
        time.sleep(0.2)


def test_stop_leaves_no_process_and_no_port(pool: Pool) -> None:
    pool.kill(signal.SIGTERM)
    assert pool.cluster.stop()
    assert marked(pool.cluster.mark) == []
    assert not pool.cluster.running() and not pool.cluster.stop()
    assert not list(Path("/tmp").glob(f"cg-{pool.cluster.mark[:8]}"))
