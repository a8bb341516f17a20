"""What failed leaves nothing behind that would wait for a collection."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.serve.endpoints import Call
from collegium.serve.requests import Request
from faults import behaviours as do
from faults.kit import QUICK, Lab, laboratory
from faults.outside import request

FAULTS = (do.status(500), do.status(429), do.reset, do.broken(9), do.malformed(5, 4), do.half_an_answer)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(Path(tmp_path_factory.mktemp("lab")), replace(QUICK, first_byte=20, retry_reserve=1e6)) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def nothing_is_collected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def await_nothing_held() -> None:
    """Until no request is left in memory."""
    until = time.monotonic() + 20
    while held := [one for one in gc.get_objects() if type(one) in (Call, Request)]:
        assert time.monotonic() < until, f"{len(held)} are held"
        del held
        time.sleep(0.05)


@pytest.mark.parametrize("model", ["math", "safe", "coding", "auto"])
def test_requests_that_an_expert_failed_at(lab: Lab, model: str) -> None:
    for number, fault in enumerate(FAULTS):
        for stream in (True, False):
            tag = f"{model}-{number}-{stream}"
            lab.main.plan(tag, fault)
            lab.ask(f"{tag} sum, 20 tokens", model, stream=stream)
    await_nothing_held()


def test_requests_that_were_refused(lab: Lab) -> None:
    assert lab.ask("hello", "none").code == "model_not_found"
    assert lab.ask("hello", "math", n=0).code == "invalid_value"
    assert lab.post("chat/completions", {"model": "math"}).code == "invalid_value"
    await_nothing_held()


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_whose_client_left(lab: Lab, stream: bool) -> None:
    lab.main.plan(f"left-{stream}", do.hang)
    with socket.create_connection(("127.0.0.1", lab.port)) as client:
        client.sendall(request(f"left-{stream} sum", stream))
        while not lab.main.of(f"left-{stream}"):
            time.sleep(0.01)
    await_nothing_held()


def test_a_request_whose_time_was_over(lab: Lab) -> None:
    lab.main.plan("late", do.hang)
    headers = {"x-collegium-timeout": "0.3"}
    response = lab.http.post(f"{lab.url}/v1/chat/completions", json=lab.body("late", "math"), headers=headers)
    assert response.status_code == 504
    await_nothing_held()
